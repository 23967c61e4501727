"""The papers' Figures 4, 11 and 12 (exact, on the CPU), beside what they published: `python -m benchmarks.papers`.

Figure 4: how many times fewer multiply-adds increments need, by patch size. Figure 11: an exact map against naive inference.
Figure 12: the measured speed-up beside the theoretical one, by patch size. On the papers' grids, floor((H − h) / S) positions
along an axis: 52 × 52 for patch 16, stride 4, 224². Writes results/papers.json and results/papers.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import theory
from benchmarks.cases import Case, Subject
from benchmarks.contenders import Stock
from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.record import write_json, write_text
from benchmarks.tables import NAMES, Plain, markdown
from benchmarks.tiled import Tiled
from krypton.ir.occlusions import Grid
from krypton.planner.optimizer import plan_query

PATCHES = (4, 8, 16, 32)
STRIDE = 4
MODELS = {"vgg16": 224, "resnet18": 224, "inception_v3": 299}

PUBLISHED: dict[str, dict[str, Any]] = {
    "vgg16": {"theory": {4: 8.6, 8: 7.9, 16: 6.5, 32: 5.0}, "naive_minutes": 16.2, "measured": {16: 5.4}},
    "resnet18": {"theory": {4: 2.4, 8: 2.3, 16: 2.2, 32: 2.0}, "naive_minutes": 2.5, "measured": {16: 2.1}},
    "inception_v3": {"theory": {4: 2.3, 8: 2.3, 16: 2.3, 32: 2.1}, "naive_minutes": 14.8, "measured": {16: 1.5}},
}
"""On an i7-6700 with 8 threads and PyTorch 0.4; measured speed-ups are known to us for patch 16 only."""


def papers_grid(size: int, patch: int) -> Grid:
    """The papers leave out the last row and the last column of positions."""
    count = (size - patch) // STRIDE
    extent = (count - 1) * STRIDE + patch
    return Grid((size, size), (patch, patch), (STRIDE, STRIDE), (0, 0, extent, extent))


def theories(subject: Subject, patch: int) -> dict[str, float]:
    """Speed-ups in multiply-adds: with fields as large as any may be (the papers' theory), and with each position's own."""
    grid = papers_grid(subject.case.size, patch)
    graph = theory.incremental_graph(subject.captured, grid)
    full = theory.full(graph)
    return {
        "theory_worst_case": full / theory.worst_case(graph, (patch, patch)),
        "theory_tight": full / theory.tight(graph, grid),
    }


def measure(subject: Subject, rounds: int, tiles: int, patches: tuple[int, ...]) -> list[dict[str, Any]]:
    """One row per patch size, naive inference measured in turn with exact queries."""
    stock = {
        "naive": Stock(subject, subject.model, torch.contiguous_format),
        "channels_last": Stock(subject, subject.channels_last, torch.channels_last),
    }
    rows = []
    for patch in patches:
        grid = papers_grid(subject.case.size, patch)
        plan = plan_query(subject.captured, grid, model=subject.case.name)
        exact = Tiled(subject.captured, plan, subject.image, subject.fill, rounds, tiles)
        runs: dict[str, Stock | Tiled] = {**stock, "exact": exact}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds):
            for name, run in runs.items():
                times[name].append(run.round(turn))
        ms = {name: statistics.median(values) + runs[name].charge for name, values in times.items()}
        rows.append(
            {
                "model": subject.case.name,
                "size": subject.case.size,
                "patch": patch,
                "grid": list(grid.shape),
                "commit": commit(),
            }
            | theories(subject, patch)
            | {"ms": ms, "minutes_per_map": {name: value * grid.count / 6e4 for name, value in ms.items()}}
            | {"speedup": {name: ms[name] / ms["exact"] for name in stock}}
        )
    return rows


def only_theory(subject: Subject) -> list[dict[str, Any]]:
    """Rows without times."""
    return [
        {"model": subject.case.name, "size": subject.case.size, "patch": patch}
        | {"grid": list(papers_grid(subject.case.size, patch).shape)}
        | theories(subject, patch)
        for patch in PATCHES
    ]


def tables(rows: list[dict[str, Any]]) -> list[Plain]:
    """Figures 4, 11 and 12 as tables."""
    timed = [row for row in rows if "ms" in row]
    return [
        Plain(
            "Figure 4: how many times fewer multiply-adds (theory), stride 4",
            ("model", "patch", "published", "worst-case fields, recomputed", "tight fields, as Krypton's"),
            [_figure_4(row) for row in rows],
        ),
        Plain(
            "Figure 11: a map, patch 16, stride 4, on the CPU",
            (
                "model",
                "grid",
                "published: naive",
                "exact",
                "here: naive",
                "channels_last",
                "exact",
                "over naive",
                "over channels_last",
            ),
            [_figure_11(row) for row in timed if row["patch"] == 16],
        ),
        Plain(
            "Figure 12: speed-up of increments alone, stride 4, on the CPU",
            (
                "model",
                "patch",
                "published: theory",
                "measured",
                "here: theory, tight fields",
                "over naive",
                "over channels_last",
            ),
            [_figure_12(row) for row in timed],
        ),
    ]


def _figure_4(row: dict[str, Any]) -> list[str]:
    published, ours = _published(row, "theory"), (row["theory_worst_case"], row["theory_tight"])
    return [NAMES[row["model"]], str(row["patch"]), factor(published, 1), *map(factor, ours)]


def _figure_11(row: dict[str, Any]) -> list[str]:
    published = f"{PUBLISHED[row['model']]['naive_minutes']} min", factor(_published(row, "measured"), 1)
    minutes = [f"{row['minutes_per_map'][name]:.2f} min" for name in ("naive", "channels_last", "exact")]
    return [NAMES[row["model"]], "×".join(map(str, row["grid"])), *published, *minutes, *_speedups(row)]


def _figure_12(row: dict[str, Any]) -> list[str]:
    published = factor(_published(row, "theory"), 1), factor(_published(row, "measured"), 1)
    return [NAMES[row["model"]], str(row["patch"]), *published, factor(row["theory_tight"]), *_speedups(row)]


def _speedups(row: dict[str, Any]) -> list[str]:
    return [factor(row["speedup"][name]) for name in ("naive", "channels_last")]


def _published(row: dict[str, Any], what: str) -> float | None:
    found: float | None = PUBLISHED[row["model"]][what].get(row["patch"])
    return found


def factor(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}×"


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """The JSON, and the tables beside it."""
    data = {"machine": describe(), "command": "python -m benchmarks.papers", "published": PUBLISHED, "results": rows}
    write_json(path, data)
    write_text(path.with_suffix(".md"), "\n".join(markdown(table) for table in tables(rows) if table.rows))


def _others(path: Path, models: Collection[str]) -> list[dict[str, Any]]:
    """What was found of other models than these in an earlier run."""
    rows: list[dict[str, Any]] = json.loads(path.read_text())["results"] if path.exists() else []
    return [row for row in rows if row["model"] not in models]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--patches", nargs="*", type=int, default=list(PATCHES), choices=PATCHES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiles", type=int, default=8, help="tiles per round")
    parser.add_argument("--theory-only", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/papers.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    torch.set_grad_enabled(False)
    console, rows = Console(width=160), _others(arguments.out, arguments.models)
    for model in arguments.models:
        console.print(f"[dim]{model}[/dim]", highlight=False)
        subject = Subject(Case(model, MODELS[model]))
        if arguments.theory_only:
            rows += only_theory(subject)
        else:
            rows += measure(subject, arguments.rounds, arguments.tiles, tuple(arguments.patches))
        rows.sort(key=lambda row: list(MODELS).index(row["model"]))
        save(arguments.out, rows)
    console.print(arguments.out.with_suffix(".md").read_text(), highlight=False, markup=False)


if __name__ == "__main__":
    main()
