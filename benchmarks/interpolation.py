"""How to fill what a drill-down leaves: `python -m benchmarks.interpolation` writes results/interpolation.json.

Exact maps of the papers' settings (see `settings`), patch 16, stride 4; of each, the positions that the papers' drill-down of
that setting computes, and what different interpolations make of these, and of these with those held out to measure the
quality. Only SSIM counts, and how long an interpolation takes.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.interpolate import CloughTocher2DInterpolator, LinearNDInterpolator, RBFInterpolator
from torch import Tensor

from benchmarks.approximate import PATCH, STRIDE, Subject
from benchmarks.approximate_tables import titled
from benchmarks.machine import commit, describe
from benchmarks.record import write_json
from benchmarks.settings import NINE, SETS, Setting
from benchmarks.tables import Plain, markdown, rich_table
from krypton.approximation import QUALITY_SHARE
from krypton.executor.interpolation import bilinear, interpolated
from krypton.executor.stages import evenly_drawn
from krypton.ir.occlusions import Grid, Lattice
from krypton.planner.stages import coarse_lattice
from krypton.planner.tiles import curve_order
from krypton.results import Heatmap, compare
from krypton.results.scores import score

Fill = Callable[[Tensor, Grid, Tensor, Lattice], Tensor]
"""Logits (n, K) of all positions from those that are known (n,), among them the crossings of a lattice."""


def _between_coarse(logits: Tensor, grid: Grid, known: Tensor, lattice: Lattice) -> Tensor:
    return torch.where(known[:, None], logits, bilinear(logits, grid, lattice))


def _by(library: Callable[..., Any], **options: Any) -> Fill:
    """An interpolation of SciPy's, through all known positions, in strides."""

    def fill(logits: Tensor, grid: Grid, known: Tensor, lattice: Lattice) -> Tensor:
        places = grid.rectangles().reshape(-1, 4)[:, :2].numpy() / np.array(grid.stride)
        values = library(places[known], logits[known].double().numpy(), **options)(places)
        return torch.where(known[:, None], logits, torch.from_numpy(values).to(logits.dtype))

    return fill


def _nearest(logits: Tensor, grid: Grid, known: Tensor, _: Lattice) -> Tensor:
    return interpolated(logits, grid, known)


FILLS: dict[str, Fill] = {
    "bilinear, between coarse positions": _between_coarse,
    "linear, on triangles": _by(LinearNDInterpolator),
    "cubic, on triangles (Clough and Tocher)": _by(CloughTocher2DInterpolator),
    "thin plates, through all": _by(RBFInterpolator, kernel="thin_plate_spline"),
    "multiquadrics, through all": _by(RBFInterpolator, kernel="multiquadric", epsilon=1, degree=0),
    "multiquadrics, through the nearest 16": _nearest,
}

WITH_HELD_OUT = "the same, those held out among them (Krypton)"


def computed(exact: Heatmap, grid: Grid, lattice: Lattice, share: float) -> Tensor:
    """(n,) bool: what a drill-down computes, the crossings of the lattice and the lowest of what lies between them."""
    known = torch.zeros(grid.shape, dtype=torch.bool)
    known[torch.tensor(lattice[0])[:, None], torch.tensor(lattice[1])] = True
    known = known.flatten()
    between = interpolated(exact.logits.flatten(0, 1), grid, known)
    lowest = score(between, exact.target, exact.score_kind, exact.activation).argsort(stable=True)
    known[lowest[: round(share * grid.count)]] = True
    return known


def measure(exact: Heatmap, drilldown: tuple[float, float]) -> dict[str, dict[str, float | None]]:
    """By interpolation: SSIM against the exact map, and seconds."""
    grid = Grid(exact.image_size, PATCH, STRIDE)
    lattice = coarse_lattice(grid, *drilldown)
    logits, known = exact.logits.flatten(0, 1), computed(exact, grid, lattice, drilldown[0])
    rest = curve_order(grid, (~known).nonzero()[:, 0].tolist())
    more = known.clone()
    more[evenly_drawn(rest, math.ceil(QUALITY_SHARE * grid.count), seed=0)] = True
    found = dict[str, dict[str, float | None]]()
    for name, fill, given in [*((name, fill, known) for name, fill in FILLS.items()), (WITH_HELD_OUT, _nearest, more)]:
        started = time.perf_counter()
        filled = fill(logits, grid, given, lattice)
        seconds = time.perf_counter() - started
        quality = compare(replace(exact, logits=filled.view_as(exact.logits)), exact)
        found[name] = {"ssim": quality.ssim, "seconds": seconds}
    return found


def table(rows: Sequence[dict[str, Any]]) -> Plain:
    """Median SSIM of each setting, the mean over all maps, and the median time."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))

    def cells(name: str) -> Iterator[str]:
        yield name
        for setting in settings:
            yield f"{statistics.median(row['maps'][name]['ssim'] for row in rows if row['setting'] == setting):.3f}"
        yield f"{statistics.mean(row['maps'][name]['ssim'] for row in rows):.3f}"
        yield f"{1e3 * statistics.median(row['maps'][name]['seconds'] for row in rows):.0f}"

    counts = {setting: sum(row["setting"] == setting for row in rows) for setting in settings}
    headings = [f"{titled(setting)} ({counts[setting]})" for setting in settings]
    return Plain(
        "SSIM of what is filled",
        ("interpolated", *headings, "mean", "ms"),
        [list(cells(name)) for name in (*FILLS, WITH_HELD_OUT)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    known = [str(setting) for setting in NINE]
    parser.add_argument("--settings", nargs="*", default=known, choices=known, metavar="MODEL/SET", help=", ".join(known))
    parser.add_argument("--scans", type=int, default=4, help="pictures of each setting")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/interpolation.json"))
    arguments = parser.parse_args()
    console, rows = Console(width=160), list[dict[str, Any]]()
    about = {
        "machine": describe(),
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.interpolation", *sys.argv[1:]]),
    }
    for setting in arguments.settings:
        subject = Subject(setting)
        for number, image in enumerate(subject.images(arguments.scans, 0)):
            exact, drilldown = subject.run(image, ""), SETS[Setting.parse(setting).set].drilldown
            rows.append({"setting": setting, "picture": number, "maps": measure(exact, drilldown)})
            write_json(arguments.out, about | {"results": rows})
            console.print(f"{setting}, picture {number}", highlight=False)
    console.print(rich_table(table(rows)))
    print(markdown(table(rows)))


if __name__ == "__main__":
    main()
