"""How time grows with the query: `python -m benchmarks.scaling` writes results/scaling.json and docs/images/scaling.png.

Seconds per map against patch size, stride, image size and number of positions (a region in the middle), measured on tiles drawn
evenly from each map, beside what the arithmetic says: the plan's multiply-adds for all positions and those of the base views,
at the rate that the panel's first model reaches at patch 16, stride 4, 224², whole map. One point fixes the line, so that only
its shape is a claim.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import theory
from benchmarks.cases import Case, Subject
from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.record import write_json
from benchmarks.tiled import Tiled
from krypton.ir.occlusions import Grid
from krypton.planner.optimizer import plan_query

PANELS: dict[str, tuple[int, ...]] = {
    "patch": (4, 8, 16, 32),
    "stride": (2, 4, 8, 16),
    "size": (224, 320, 448, 640, 1024),
    "positions": (4, 8, 16, 32, 53),
}
"""What varies, and its values; positions are those of a square, its side given here."""

TITLES = {
    "patch": "patch size (pixels)",
    "stride": "stride (pixels)",
    "size": "image size (pixels)",
    "positions": "positions",
}


@dataclass(frozen=True)
class Point:
    """One query: `panel` is what varies, all else is as usual."""

    panel: str
    model: str
    patch: int = 16
    stride: int = 4
    size: int = 224
    side: int | None = None

    @classmethod
    def of(cls, panel: str, model: str, value: int) -> Point:
        return cls(panel, model, **{"side" if panel == "positions" else panel: value})

    def grid(self) -> Grid:
        """Where the patches are; `side` positions along either axis, in the middle of the image."""
        whole = Grid((self.size, self.size), (self.patch, self.patch), (self.stride, self.stride))
        if self.side is None or self.side >= whole.shape[0]:
            return whole
        first = whole.tops[(whole.shape[0] - self.side) // 2]
        extent = (self.side - 1) * self.stride + self.patch
        return Grid(whole.image, whole.patch, whole.stride, (first, first, extent, extent))


def points(panels: Sequence[str], models: Sequence[str]) -> Iterator[Point]:
    """The first model in every panel, the others only where patches vary; grouped so that each model is captured seldom."""
    for place, model in enumerate(models):
        mine = [Point.of(p, model, v) for p in panels for v in PANELS[p] if place == 0 or p == "patch"]
        yield from sorted(mine, key=lambda point: point.size)


def measure(point: Point, subject: Subject, rounds: int, tiles: int) -> dict[str, Any]:
    """One point, as JSON data."""
    grid = point.grid()
    plan = plan_query(subject.captured, grid, model=point.model)
    assert plan.tensor is not None
    tiled = Tiled(subject.captured, plan, subject.image, subject.fill, rounds, tiles)
    per_position = statistics.median(tiled.round(turn) for turn in range(rounds))
    everything = theory.of_tiles(plan.tensor.graph, plan.tensor.tiling.tiles(grid))
    return asdict(point) | {
        "positions": grid.count,
        "commit": commit(),
        "ms_per_position": per_position,
        "once_ms": tiled.once,
        "seconds_per_map": (per_position * grid.count + tiled.once) / 1e3,
        "multiply_adds_per_map": sum(everything.values()) + theory.full(plan.tensor.graph),
        "full_multiply_adds": theory.full(plan.tensor.graph),
        "measured_positions": tiled.facts()["measured_positions"],
    }


def with_theory(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the seconds that arithmetic predicts, where the usual query of the model was measured."""
    found = []
    for row in rows:
        usual = [r for r in rows if r["model"] == row["model"] and is_usual(r)]
        rate = statistics.mean(r["multiply_adds_per_map"] / r["seconds_per_map"] for r in usual) if usual else None
        found.append(row | {"theory_seconds": row["multiply_adds_per_map"] / rate if rate else None})
    return found


def is_usual(row: dict[str, Any]) -> bool:
    return (row["patch"], row["stride"], row["size"], row["positions"]) == (16, 4, 224, 53 * 53)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Four panels on logarithmic axes: points are measured, lines are arithmetic."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    from benchmarks.tables import NAMES

    figure, grid = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    colours = {model: f"C{place}" for place, model in enumerate(dict.fromkeys(row["model"] for row in rows))}
    for axes, panel in zip(grid.flat, PANELS, strict=True):
        for model, colour in colours.items():
            mine = sorted((r for r in rows if r["panel"] == panel and r["model"] == model), key=lambda r: r[panel])
            name = NAMES.get(model, model)
            if mine and mine[0]["theory_seconds"]:
                line = [row["theory_seconds"] for row in mine]
                axes.plot([row[panel] for row in mine], line, color=colour, linewidth=1, label=f"{name}, arithmetic")
            if mine:
                dots = [row["seconds_per_map"] for row in mine]
                axes.plot([row[panel] for row in mine], dots, "o", color=colour, markersize=5, label=f"{name}, measured")
        axes.set(xscale="log", yscale="log", xlabel=TITLES[panel], ylabel="seconds per map")
        ticks = sorted({row[panel] for row in rows if row["panel"] == panel})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(True, which="major", linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.has_data():
            axes.legend(frameon=False, fontsize="small")
    figure.suptitle("Patch 16, stride 4, 224², whole map, unless varied", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_json(path, {"machine": describe(), "command": "python -m benchmarks.scaling", "results": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=["resnet18", "vgg16"], help="the first in every panel, others by patch")
    parser.add_argument("--panels", nargs="*", default=list(PANELS), choices=PANELS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiles", type=int, default=8, help="tiles per round")
    parser.add_argument("--largest", type=int, default=1024, help="leave out larger images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/scaling.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/images/scaling.png"))
    parser.add_argument("--draw-only", action="store_true", help="draw what was measured before")
    arguments = parser.parse_args()
    if arguments.draw_only:
        draw(json.loads(arguments.out.read_text())["results"], arguments.figure)
        return
    with_tuned_allocator()
    torch.set_grad_enabled(False)
    console, rows, subject = Console(width=140), [], None
    for point in points(arguments.panels, arguments.models):
        if point.size > arguments.largest:
            continue
        case = Case(point.model, point.size)
        if subject is None or subject.case != case:
            subject = None
            gc.collect()
            subject = Subject(case)
        started = time.perf_counter()
        rows.append(measure(point, subject, arguments.rounds, arguments.tiles))
        rows = with_theory(rows)
        save(arguments.out, rows)
        row = rows[-1]
        console.print(
            f"{point.model} {point.panel} {row[point.panel]:,}: {row['seconds_per_map']:.2f} s per map, "
            f"{row['ms_per_position']:.2f} ms per position ({time.perf_counter() - started:.0f} s)",
            highlight=False,
        )
    draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
