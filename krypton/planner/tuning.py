"""Tuning, the arithmetic of it: settings to try on a sample of images, curves through what they gave, and the choice of one.

After the papers' tuning of tau: SSIM at tau 1.0, 0.9 … 0.4, the mean over the images, a polynomial of degree 2 through the
means, and tau where it crosses the target. The same is done for the energy cut; drill-downs, alone and with an energy cut,
stand beside the two curves, and the cheapest setting that reaches the target is taken, whatever it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from krypton.ir.occlusions import Grid
from krypton.ir.plan import Approximation
from krypton.planner.stages import MEASURED, reaches

Parameter = Literal["tau", "keep"]
PARAMETERS: tuple[Parameter, ...] = ("tau", "keep")

TAUS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
KEEPS = (0.9995, 0.999, 0.99, 0.97, 0.93)
DRILLDOWNS = ((0.4, 2.0), (0.25, 3.0), (0.1, 5.0), (0.05, 8.0))
BOTH = (0.999, 0.99)
"""Energy cuts that are tried together with each drill-down."""

MISS = 0.05
"""By how much an image may miss the target, and ..."""
SHARE = 0.8
"""... what share of the images may not miss it by more, ..."""
CONFIDENCE = 0.95
"""... of those to come, too, with this probability: a setting that just does on a sample fails on others as often as not."""

BETWEEN = 10
"""Values of tau and keep that are considered between the one at the target and the greatest."""

FITS = 0.02
"""The farthest that a polynomial may be from the means."""

WORTH = 0.97
"""Of the time of the exact map; what takes longer is not worth its error."""


def candidates(grid: Grid) -> list[Approximation]:
    """The settings to try on a grid, without those that it is too small for. tau 1 is exact, and need not be run."""
    drills = [pair for pair in DRILLDOWNS if reaches(grid, *pair)]
    keeps, both = (KEEPS, BOTH) if grid.count >= MEASURED else ((), ())
    return [
        *(Approximation(tau=tau) for tau in TAUS),
        *(Approximation(keep=keep) for keep in keeps),
        *(Approximation(drilldown=share, speedup=speedup) for share, speedup in drills),
        *(Approximation(keep=keep, drilldown=share, speedup=speedup) for keep in both for share, speedup in drills),
    ]


@dataclass(frozen=True)
class Sampled:
    """What a setting gave: for each image, the SSIM with the exact map, and the time over that of the exact map."""

    setting: Approximation
    ssim: tuple[float, ...]
    cost: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.ssim)

    @property
    def typical_cost(self) -> float:
        """The median: one image that was disturbed does not count."""
        return statistics.median(self.cost)


EXACT = Approximation()


@dataclass(frozen=True)
class Curve:
    """Mean SSIM over tau or keep: the points as sampled, values ascending, and a polynomial of degree 2 through them.

    Of keep, the polynomial is one of -log10(1 - keep), how many nines it has. No cut is worse for keeping more, so beyond its
    peak the polynomial is level. Where it does not fit, straight lines between the means, made to rise, stand in its place.
    """

    parameter: Parameter
    values: tuple[float, ...]
    means: tuple[float, ...]

    @cached_property
    def coefficients(self) -> tuple[float, float, float] | None:
        """Of the polynomial, the constant first; None where lines stand in its place."""
        places = np.array([_place(self.parameter, value) for value in self.values])
        if len(places) < 3:
            return None
        constant, linear, square = map(float, np.polynomial.polynomial.polyfit(places, self.means, 2))
        error = max(abs(_level(place, constant, linear, square) - mean) for place, mean in zip(places, self.means, strict=True))
        return (constant, linear, square) if linear + 2 * square * places[0] >= 0 and error <= FITS else None

    @cached_property
    def rising(self) -> tuple[float, ...]:
        """The means, as little changed as makes them rise."""
        from scipy.optimize import isotonic_regression

        return tuple(isotonic_regression(self.means).x.tolist())

    def at(self, value: float) -> float:
        """The fitted mean SSIM, between the least and the greatest value."""
        place = _place(self.parameter, value)
        if self.coefficients is None:
            return float(np.interp(place, [_place(self.parameter, known) for known in self.values], self.rising))
        return min(_level(place, *self.coefficients), 1.0)

    def reach(self, target: float) -> float | None:
        """The least value, within those sampled, whose fitted SSIM is the target; None where even the greatest misses it."""
        least, greatest = self.values[0], self.values[-1]
        if self.at(greatest) < target:
            return None
        if self.at(least) >= target:
            return least
        low, high = (_place(self.parameter, value) for value in (least, greatest))
        for _ in range(50):  # it rises
            middle = (low + high) / 2
            low, high = (low, middle) if self.at(_value(self.parameter, middle)) >= target else (middle, high)
        return min(_value(self.parameter, high), greatest)


def _level(place: float, constant: float, linear: float, square: float) -> float:
    """A polynomial, level beyond its peak."""
    if square < 0:
        place = min(place, -linear / (2 * square))
    return constant + linear * place + square * place**2


def _place(parameter: Parameter, value: float) -> float:
    return value if parameter == "tau" else -math.log10(1 - value)


def _value(parameter: Parameter, place: float) -> float:
    return place if parameter == "tau" else 1 - 10**-place


def curve(sampled: Sequence[Sampled], parameter: Parameter) -> Curve | None:
    """The curve of tau, or of keep, by what was sampled with nothing else; None where there is no such thing."""
    points = sorted(_alone(sampled, parameter).items())
    return Curve(parameter, tuple(value for value, _ in points), tuple(of.mean for _, of in points)) if points else None


def _alone(sampled: Sequence[Sampled], parameter: Parameter) -> dict[float, Sampled]:
    """Those that set just one parameter, by its value."""
    options = ((entry.setting.options(), entry) for entry in sampled)
    return {found[parameter]: entry for found, entry in options if found.keys() == {parameter}}


def choose(sampled: Sequence[Sampled], target: float) -> Sampled:
    """The cheapest setting that reaches a target, the exact map if there is none.

    It does when its fitted SSIM is at least the target, and four of five images are at most 0.05 below: of those sampled, and,
    by a tolerance bound (95 %, as of a normal distribution), of all. For values of tau and keep between two that were sampled,
    from the one at the target on, each image's SSIM and time are interpolated.
    """
    found = [entry for entry in sampled if len(entry.setting.options()) > 1 and entry.mean >= target]
    for parameter in PARAMETERS:
        alone, fitted = _alone(sampled, parameter), curve(sampled, parameter)
        reached = None if fitted is None else fitted.reach(target)
        if reached is not None:
            first, last = (_place(parameter, value) for value in (reached, max(alone)))
            values = {_short(parameter, _value(parameter, place)) for place in np.linspace(first, last, BETWEEN).tolist()}
            found += [_between(alone, parameter, min(value, max(alone))) for value in values]
    able = [entry for entry in found if _sure(entry, target) and entry.typical_cost < WORTH]
    images = len(sampled[0].ssim)
    return min(able, key=lambda entry: entry.typical_cost, default=Sampled(EXACT, (1.0,) * images, (1.0,) * images))


def _sure(entry: Sampled, target: float) -> bool:
    met = sum(ssim >= target - MISS for ssim in entry.ssim)
    return met >= SHARE * len(entry.ssim) and _bound(entry.ssim) >= target - MISS


def _bound(ssim: Sequence[float]) -> float:
    """What most images have at least: the one-sided tolerance bound of a normal distribution."""
    from scipy.stats import nct, norm

    count = len(ssim)
    factor = nct.ppf(CONFIDENCE, count - 1, norm.ppf(SHARE) * count**0.5) / count**0.5
    return statistics.fmean(ssim) - float(factor) * statistics.stdev(ssim)


def _short(parameter: Parameter, value: float) -> float:
    """A value that is no longer than it need be, rounded to the careful side."""
    if parameter == "tau":
        return math.ceil(value * 1e3 - 1e-6) / 1e3
    scale = 10.0 ** (2 - math.ceil(math.log10(1 - value)))
    return 1 - math.floor((1 - value) * scale + 1e-6) / scale


def _setting(parameter: Parameter, value: float) -> Approximation:
    return Approximation(tau=value) if parameter == "tau" else Approximation(keep=value)


def _between(alone: Mapping[float, Sampled], parameter: Parameter, value: float) -> Sampled:
    """What a value of one parameter would have given, by the nearest ones on both sides of it."""
    values = sorted(alone)
    places = [_place(parameter, known) for known in values]

    def between(field: Literal["ssim", "cost"]) -> tuple[float, ...]:
        rows = np.array([getattr(alone[known], field) for known in values])  # (values, images)
        return tuple(float(np.interp(_place(parameter, value), places, row)) for row in rows.T)

    return Sampled(_setting(parameter, value), between("ssim"), between("cost"))
