"""The options of MODE APPROXIMATE, checked: what a query may leave out, as the planner takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from krypton.errors import BindError
from krypton.ir.plan import Approximation
from krypton.planner.stages import first_stride

APPROXIMATE_OPTIONS = ("tau", "crop", "keep", "freeze", "correct", "drilldown", "speedup", "ssim", "quality_share")

MEANS = ("tau", "crop", "keep", "freeze", "correct", "drilldown", "speedup")
"""Those that say what is left out."""

DRILLDOWN, SPEEDUP = 0.25, 3.0
"""The papers' setting for natural images, and the default of MODE APPROXIMATE."""

QUALITY_SHARE = 0.02

_NUMBERS = (int, float, np.integer, np.floating)
_MOST = 2**63


def check_approximation(options: Mapping[str, Any], seed: int, within: float | None = None) -> Approximation:
    """What the options of a query say, with the defaults for what they do not; raises BindError.

    With ssim, that is left to a tuning or the run, which with a deadline ends earlier if it can. Without tau, keep and freeze
    there is a drill-down; with one of them only if drilldown or speedup is written. With a deadline, `within` seconds, there
    is none: how many positions are computed is then a matter of time.
    """
    given = {name.lower(): value for name, value in options.items()}
    share = number_option("quality_share", given.get("quality_share", QUALITY_SHARE), 0, 1)
    if "ssim" in given:
        return Approximation(quality_share=share, seed=seed, within=within, ssim=check_goal(given))
    tau, keep = (number_option(name, given[name], 0, 1, above=True) if name in given else None for name in ("tau", "keep"))
    freeze, crop = (flag_option(name, given.get(name, False)) for name in ("freeze", "crop"))
    if crop and tau is None:
        raise BindError("option crop says how tau cuts fields, and tau is missing: write WITH (tau => 0.7, crop => TRUE), say")
    correct = whole_option("correct", given["correct"], 2) if "correct" in given else None
    if correct is not None:
        _check_correction(given, within)
    drilldown, speedup = None, None
    fixed = sorted({"drilldown", "speedup"} & {*given})
    if within is not None and fixed:
        raise BindError(
            f"WITHIN and option {fixed[0]} contradict each other: both say how many positions are computed. Leave one out"
        )
    if within is None and (fixed or (tau is None and keep is None and not freeze)):
        drilldown = number_option("drilldown", given.get("drilldown", DRILLDOWN), 0, 1)
        speedup = number_option("speedup", given.get("speedup", SPEEDUP), 1)
        try:
            first_stride(drilldown, speedup)
        except BindError as error:
            unwritten = next((name for name in ("drilldown", "speedup") if name not in given), None)
            raise BindError(f"{error} ({unwritten} is not written: that is its default)" if unwritten else str(error)) from None
    return Approximation(tau, keep, drilldown, speedup, share, seed, within, freeze=freeze, crop=crop, correct=correct)


def _check_correction(given: Mapping[str, Any], within: float | None) -> None:
    if within is not None:
        raise BindError("WITHIN and option correct contradict each other: one computes what there is time for. Leave one out")
    if fixed := sorted({"drilldown", "speedup"} & {*given}):
        raise BindError(
            f"options correct and {fixed[0]} contradict each other: one corrects a cheap map of all positions, the other "
            "leaves positions out. Leave one out"
        )
    if not given.get("freeze") and not {"tau", "keep"} & {*given}:
        raise BindError(
            "option correct mends what freeze, keep or tau leave out: write one, WITH (freeze => TRUE, correct => 4)"
        )


def check_goal(given: Mapping[str, Any]) -> float:
    """The goal of options with one; raises BindError where others say already what is to be left out."""
    means = [name for name in MEANS if name in given]
    if means:
        raise BindError(
            f"ssim is a goal, and {' and '.join(means)} already {'says' if len(means) == 1 else 'say'} what is left out: write "
            f"ssim alone, and what reaches it is chosen, or {', '.join(means)} without it, and the map says its quality"
        )
    return number_option("ssim", given["ssim"], 0, 1, above=True)


def tunable(options: Mapping[str, Any], within: float | None) -> bool:
    """Whether the options of a query in mode approximate leave it to a tuning, or to its deadline, what is left out."""
    return not {name.lower() for name in options} & {*MEANS, *([] if within is None else ["tolerance"])}


def flag_option(name: str, value: object) -> bool:
    """TRUE or FALSE, as an option takes it; raises BindError."""
    if not isinstance(value, bool):
        raise BindError(f"option {name} is TRUE or FALSE, not {value!r}")
    return value


def whole_option(name: str, value: object, least: int) -> int:
    """A whole number of 63 bits that an option takes; raises BindError."""
    if (
        not isinstance(value, _NUMBERS)
        or isinstance(value, bool)
        or not least <= value < _MOST
        or not float(value).is_integer()
    ):
        raise BindError(f"option {name} takes a whole number of at least {least}, not {value!r}")
    return int(value)


def number_option(name: str, value: object, least: float, most: float = float("inf"), *, above: bool = False) -> float:
    """A number from `least` (or only `above` it) to `most` that an option takes; raises BindError."""
    number = isinstance(value, _NUMBERS) and not isinstance(value, bool)
    if not number or not least <= value <= most or (above and value == least):  # type: ignore[operator]
        bounds = f"{'above' if above else 'of at least'} {least:g}" + (f", at most {most:g}" if most < float("inf") else "")
        raise BindError(f"option {name} takes a number {bounds}, not {value!r}")
    return float(value)  # type: ignore[arg-type]
