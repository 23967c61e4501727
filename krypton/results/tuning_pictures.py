"""Pictures of a tuning: mean SSIM over tau and over keep with each image's own points, and how far images are from the target.

As in `pictures`, Matplotlib's objects and never pyplot.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from krypton.errors import ExecutionError
from krypton.planner.tuning import MISS, PARAMETERS, Parameter, Sampled, curve
from krypton.results.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_POINTS = 100


def figure(sampled: Sequence[Sampled], target: float, deviations: Sequence[float]) -> Figure:
    """Panels for tau, for keep where there is a curve of it, and for the deviations of the chosen setting."""
    from matplotlib.figure import Figure

    shown = [name for name in PARAMETERS if curve(sampled, name) is not None]
    drawn = Figure(figsize=(4 * (len(shown) + 1), 3.2), layout="constrained")
    *left, right = np.atleast_1d(drawn.subplots(1, len(shown) + 1))
    for name, ax in zip(shown, left, strict=True):
        _draw_curve(sampled, name, target, ax)
    _draw_deviations(deviations, right)
    return drawn


def save(drawn: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as the suffix of the path says; raises ExecutionError for a suffix or a place that does not do."""
    target = Path(path).expanduser()

    def write(temporary: Path) -> None:
        drawn.savefig(temporary, dpi=_DPI, format=target.suffix.removeprefix(".").lower() or "png")

    try:
        write_whole(target, write)
    except ValueError as error:  # of Matplotlib, for the suffix
        raise ExecutionError(f"the picture '{target}' cannot be written: {error}") from None
    return target


def _draw_curve(sampled: Sequence[Sampled], name: Parameter, target: float, ax: Axes) -> None:
    fitted = curve(sampled, name)
    assert fitted is not None

    def across(value: float) -> float:
        """Of keep what is left out, so that a logarithmic axis tells 0.99 from 0.999."""
        return value if name == "tau" else 1 - value

    for entry in sampled:
        options = entry.setting.options()
        if options.keys() == {name}:
            ax.plot([across(options[name])] * len(entry.ssim), entry.ssim, ".", color="0.7", markersize=4)
    values = np.linspace(fitted.values[0], fitted.values[-1], _POINTS)
    if name == "keep":
        values = 1 - np.geomspace(1 - fitted.values[0], 1 - fitted.values[-1], _POINTS)
        values[[0, -1]] = fitted.values[0], fitted.values[-1]
        ax.set_xscale("log")
        ax.invert_xaxis()
    ax.plot([across(value) for value in values], [fitted.at(float(value)) for value in values], color="C0")
    ax.plot([across(value) for value in fitted.values], fitted.means, "o", color="C0", markersize=4)
    ax.axhline(target, color="C3", linewidth=1)
    reached = fitted.reach(target)
    if reached is not None:
        ax.axvline(across(reached), color="C3", linewidth=1, linestyle=":")
    ax.set_xlabel("tau" if name == "tau" else "1 - keep")
    ax.set_ylabel("SSIM")
    found = "the target is not reached" if reached is None else f"{name} {reached:.4g} at SSIM {target:g}"
    ax.set_title(found, fontsize=10)


def _draw_deviations(deviations: Sequence[float], ax: Axes) -> None:
    ax.hist(deviations, bins=min(15, max(len(deviations) // 2, 3)), color="C0")
    ax.axvline(0, color="C3", linewidth=1)
    ax.axvline(-MISS, color="C3", linewidth=1, linestyle=":")
    met = sum(deviation >= -MISS for deviation in deviations)
    ax.set_xlabel("SSIM with the setting, less the target")
    ax.set_ylabel("images")
    ax.set_title(f"met or missed by at most {MISS}: {met} of {len(deviations)}", fontsize=10)
