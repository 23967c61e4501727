"""The papers' Figures 7, 10, 13 and 14 (approximations, on the CPU): `python -m benchmarks.papers_approximate`.

Figure 7: the curve of SSIM over τ that a tuning samples, and how far from the target images end up that were not tuned on;
drawn from results/tuning.json. Figure 10: maps of the settings, exact and by the drill-down of each set. Figure 13: speed-ups
by τ, in multiply-adds and in time, on tiles of the papers' grids. Figure 14: speed-ups by the share r that a drill-down
refines, of whole maps, S1 = 16, S2 = 4. Writes results/papers_approximate.json and .md, and pictures into docs/images;
figures and models that are not asked for are kept as they were.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks import theory
from benchmarks.approximate import DEMO, PATCH, Naive
from benchmarks.approximate import Subject as Trained
from benchmarks.cases import Case, Subject
from benchmarks.contenders import Stock
from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.papers import MODELS, STRIDE, factor, papers_grid
from benchmarks.record import write_json, write_text
from benchmarks.settings import SETS
from benchmarks.tables import NAMES, Plain, markdown
from benchmarks.tiled import Tiled
from krypton.ir.occlusions import Grid
from krypton.ir.plan import Approximation, QueryPlan
from krypton.planner.optimizer import plan_query
from krypton.planner.order import evenly
from krypton.planner.stages import SLACK, coarse_lattice
from krypton.planner.tuning import Sampled
from krypton.results import compare, tuning_pictures

TAUS = (1.0, 0.8, 0.6, 0.4)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
PICTURED = {"retina": 0, "xray": 3, "natural": 0}
"""Which pictures Figure 10 shows: none that a model has a flat map of, which has no SSIM."""

COARSE = 16
"""S1 of Figure 14; S2 is 4, as in all of them."""

OF_SHARES = {"vgg16": "natural", "resnet18": "retina", "inception_v3": "retina"}
"""Whose pictures Figure 14 is measured on: of sets that the model is good on."""

PUBLISHED = {
    "theory": {
        "vgg16": {1.0: 6.5, 0.8: 7.2, 0.6: 8.7, 0.4: 11.4},
        "resnet18": {1.0: 2.2, 0.8: 2.8, 0.6: 4.8, 0.4: 7.7},
        "inception_v3": {1.0: 2.3, 0.8: 3.0, 0.6: 4.7, 0.4: 8.6},
    },
    "measured": {
        "vgg16": {1.0: 5.4, 0.8: 5.7, 0.6: 6.9, 0.4: 7.9},
        "resnet18": {1.0: 2.1, 0.8: 2.5, 0.6: 4.4, 0.4: 5.1},
        "inception_v3": {1.0: 1.5, 0.8: 1.8, 0.6: 2.7, 0.4: 4.2},
    },
}
"""Speed-ups by τ, on an i7-6700 with 8 threads and PyTorch 0.4."""

PUBLISHED_SHARES = {0.1: 6.2, 0.2: 3.8, 0.3: 2.8, 0.4: 2.2, 0.5: 1.8}
"""Of positions, by the share that is refined."""

IMAGES = Path("docs/images")
Row = dict[str, Any]


def cut(subject: Subject, grid: Grid, tau: float) -> QueryPlan:
    """A plan whose fields are cut, all positions in tiles: what no stages surround can be measured tile by tile."""
    plan = plan_query(subject.captured, grid, mode="approximate", approximation=Approximation(tau), model=subject.case.name)
    return replace(plan, kind="exact", approximation=None, stages=())


def figure_13(model: str, arguments: argparse.Namespace) -> list[Row]:
    """A row for each τ: multiply-adds with worst-case and with tight fields, and times taken in turn with naive inference."""
    subject = Subject(Case(model, MODELS[model]))
    grid = papers_grid(subject.case.size, PATCH[0])
    plain = theory.incremental_graph(subject.captured, grid)
    full = theory.full(plain)
    runs: dict[str, Any] = {
        "naive": Stock(subject, subject.model, torch.contiguous_format),
        "channels_last": Stock(subject, subject.channels_last, torch.channels_last),
    }
    stock = list(runs)
    for tau in TAUS:
        plan = cut(subject, grid, tau)
        runs[f"{tau:g}"] = Tiled(subject.captured, plan, subject.image, subject.fill, arguments.rounds, arguments.tiles)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(arguments.rounds):
        for name, run in runs.items():
            spent[name].append(run.round(turn))
    ms = {name: statistics.median(values) + runs[name].charge for name, values in spent.items()}
    return [
        {"model": model, "tau": tau, "grid": list(grid.shape), "commit": commit()}
        | {"theory_worst_case": full / theory.worst_case(plain, PATCH, tau)}
        | {"theory_tight": full / theory.tight(theory.incremental_graph(subject.captured, grid, tau), grid)}
        | {"ms": {"cut": ms[f"{tau:g}"]} | {name: ms[name] for name in stock}}
        | {"speedup": {name: ms[name] / ms[f"{tau:g}"] for name in stock}}
        for tau in TAUS
    ]


def theory_of(share: float) -> float:
    """How many times fewer positions, when coarse ones are not computed again (the papers' equation 38)."""
    coarse = (STRIDE / COARSE) ** 2
    return 1 / (coarse + share * (1 - coarse))


def speedup(grid: Grid, share: float) -> float:
    """What has to be asked for to get S1: a little more than is reached with it on the grid, which the planner lets pass."""
    coarse = math.prod(len(evenly(length, COARSE // STRIDE)) for length in grid.shape)
    return grid.count / (coarse + share * (grid.count - coarse)) * (1 + 0.8 * (1 - SLACK))


def figure_14(model: str, _: argparse.Namespace) -> list[Row]:
    """A row for each share, of one picture of the model's setting, in turn with exact and naive maps of it."""
    subject = Trained(f"{model}/{OF_SHARES[model]}")
    image = next(iter(subject.images(1, 0)))
    subject.run(image, "IN REGION (0, 0, 48, 48)")  # graphs are captured, kernels made ready
    naive = Naive(subject.module, subject.options["input_shape"])
    naive.round()
    exact, found = subject.run(image, ""), {}
    grid = Grid(exact.image_size, PATCH, (STRIDE, STRIDE))
    for share in SHARES:
        options = f"drilldown => {share:g}, speedup => {speedup(grid, share):.4f}, quality_share => 0"
        found[share] = subject.run(image, f"MODE APPROXIMATE WITH ({options})")
        naive.round()
    seconds = naive.best * exact.known.numel()
    rows = []
    for share, heatmap in found.items():
        lattice = coarse_lattice(grid, share, speedup(grid, share))
        rows.append(
            {"model": model, "share": share, "accuracy": subject.about["accuracy"], "commit": commit()}
            | {"steps": [(axis[1] - axis[0]) * STRIDE for axis in lattice], "theory": theory_of(share)}
            | {"positions": exact.known.numel() / int(heatmap.exact.sum()), "ssim": compare(heatmap, exact).ssim}
            | {"seconds": {"naive": seconds, "exact": exact.info["seconds"], "drilldown": heatmap.info["seconds"]}}
        )
    return rows


def figure_7(path: Path, results: Path) -> None:
    """The curve of τ over the images that were tuned on; deviations are those of others, explained with the tuning."""
    data = next(found for found in json.loads(results.read_text())["results"] if found["setting"] == DEMO)
    target = 0.9
    sampled = [Sampled(Approximation(**s["setting"]), tuple(s["ssim"]), tuple(s["cost"])) for s in data["sampled"]]
    tested = [row for row in data["rows"] if row["target"] == target and row["by"] == "by tuning" and row["ssim"] is not None]
    tuning_pictures.save(tuning_pictures.figure(sampled, target, [row["ssim"] - target for row in tested]), path)


def figure_10(path: Path, models: Sequence[str]) -> None:
    """One picture of each set, explained exactly and by the set's drill-down, for each model."""
    drawn = Figure(figsize=(2.9 * (1 + 2 * len(models)), 2.9 * len(SETS)), layout="constrained")
    axes = drawn.subplots(len(SETS), 1 + 2 * len(models), squeeze=False)
    for row, (name, of) in zip(axes, SETS.items(), strict=True):
        share, faster = of.drilldown
        for place, model in enumerate(models):
            subject = Trained(f"{model}/{name}")
            image = next(iter(subject.images(1, PICTURED[name])))
            exact = subject.run(image, "")
            options = f"drilldown => {share:g}, speedup => {faster:g}"
            approximate = subject.run(image, f"MODE APPROXIMATE WITH ({options})")
            if place == 0:
                row[0].imshow(image)
                row[0].set_title(of.title, fontsize=9)
                row[0].set_axis_off()
            ssim = compare(approximate, exact).ssim
            titles = f"{NAMES[model]}, {exact.label}", f"{options.replace(' =>', '')}\nSSIM {ssim:.3f}"
            for ax, heatmap, title in zip(row[1 + 2 * place :], (exact, approximate), titles, strict=False):
                heatmap.plot(ax=ax)
                ax.set_title(title, fontsize=9)
    drawn.savefig(path, dpi=80)


TIMED: dict[str, Callable[[str, argparse.Namespace], list[Row]]] = {"13": figure_13, "14": figure_14}


def tables(found: dict[str, list[Row]]) -> list[Plain]:
    """Figures 13 and 14."""
    return [
        Plain(
            "Figure 13: speed-up by τ, patch 16, stride 4, on the CPU",
            (
                "model",
                "τ",
                "published: theory",
                "measured",
                "here: worst-case fields, recomputed",
                "tight fields",
                "over naive",
                "over channels_last",
            ),
            [_figure_13(row) for row in found.get("13", [])],
        ),
        Plain(
            "Figure 14: speed-up of exact drill-down, S1 = 16, S2 = 4, on the CPU",
            ("model", "r", "published: theory", "here: theory", "positions", "over exact", "over naive", "SSIM"),
            [_figure_14(row) for row in found.get("14", [])],
        ),
    ]


def _figure_13(row: Row) -> list[str]:
    published = [factor(PUBLISHED[which][row["model"]][row["tau"]], 1) for which in ("theory", "measured")]
    theories = [factor(row[which]) for which in ("theory_worst_case", "theory_tight")]
    measured = [factor(row["speedup"][name]) for name in ("naive", "channels_last")]
    return [NAMES[row["model"]], f"{row['tau']:g}", *published, *theories, *measured]


def _figure_14(row: Row) -> list[str]:
    seconds = row["seconds"]
    faster = [factor(seconds[of] / seconds["drilldown"]) for of in ("exact", "naive")]
    return [
        NAMES[row["model"]],
        f"{row['share']:g}",
        factor(PUBLISHED_SHARES[row["share"]], 1),
        *(factor(row[of]) for of in ("theory", "positions")),
        *faster,
        f"{row['ssim']:.3f}",
    ]


def save(path: Path, found: dict[str, list[Row]]) -> None:
    """The JSON, and the tables beside it."""
    command = "python -m benchmarks.papers_approximate"
    published = PUBLISHED | {"shares": PUBLISHED_SHARES}
    write_json(path, {"machine": describe(), "command": command, "published": published, "results": found})
    write_text(path.with_suffix(".md"), "\n".join(markdown(table) for table in tables(found) if table.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--figures", nargs="*", default=["7", "10", "13", "14"], choices=["7", "10", "13", "14"])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=2, help="of Figure 13")
    parser.add_argument("--tiles", type=int, default=4, help="per round of Figure 13")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/papers_approximate.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    torch.set_grad_enabled(False)
    console = Console(width=160)
    found: dict[str, list[Row]] = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else {}
    for figure in arguments.figures:
        for model in arguments.models if figure in TIMED else ():
            console.print(f"[dim]Figure {figure}, {model}[/dim]", highlight=False)
            rows = TIMED[figure](model, arguments)
            others = [row for row in found.get(figure, []) if row["model"] != model]
            found[figure] = sorted([*others, *rows], key=lambda row: list(MODELS).index(row["model"]))
            save(arguments.out, found)
            gc.collect()
    if "7" in arguments.figures:
        figure_7(IMAGES / "figure7.png", arguments.out.with_name("tuning.json"))
    if "10" in arguments.figures:
        figure_10(IMAGES / "figure10.png", arguments.models)
    if arguments.out.exists():
        console.print(arguments.out.with_suffix(".md").read_text(), highlight=False, markup=False)


if __name__ == "__main__":
    main()
