"""The benchmarks' own arithmetic, where a mistake would make a wrong claim; nothing is timed."""

from __future__ import annotations

import importlib
import pkgutil
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import benchmarks
from benchmarks import approximate, approximate_tables, estimate, interpolation, peers, settings, tables, theory, zeros
from benchmarks.cases import even
from benchmarks.exact import key, ratios
from benchmarks.papers import papers_grid
from benchmarks.peers import EnoughError, Watched
from benchmarks.scaling import PANELS, Point, points
from krypton.ir.occlusions import Grid
from krypton.planner.capture import CapturedModel, capture
from krypton.planner.optimizer import plan_query
from krypton.planner.order import evenly
from krypton.planner.tiles import single_tiling


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
    return capture(nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval(), (3, 32, 32))


GRID = Grid((32, 32), (4, 4), (4, 4))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_every_program_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_tight_multiply_adds_are_those_of_positions_one_by_one(captured: CapturedModel) -> None:
    graph = theory.incremental_graph(captured, GRID)
    one_by_one = theory.of_tiles(graph, single_tiling(GRID).tiles(GRID))
    assert theory.tight(graph, GRID) == pytest.approx(sum(one_by_one.values()) / GRID.count)


def test_fields_are_at_most_the_worst_case_and_tiles_at_least_the_fields(captured: CapturedModel) -> None:
    graph = theory.incremental_graph(captured, GRID)
    plan = plan_query(captured, GRID)
    assert plan.tensor is not None
    tiles = sum(theory.of_tiles(plan.tensor.graph, plan.tensor.tiling.tiles(GRID)).values()) / GRID.count
    assert theory.tight(graph, GRID) < theory.worst_case(graph, (4, 4)) < theory.full(graph)
    assert theory.tight(graph, GRID) <= tiles


def test_worst_case_field_follows_the_formula_of_the_paper(captured: CapturedModel) -> None:
    # 4 → 6 → ceil((6 + 2 − 1) / 2) = 4 → 6
    graph = theory.incremental_graph(captured, GRID)
    assert theory.worst_case(graph, (4, 4)) == 6 * 6 * 4 * 27 + 6 * 6 * 8 * 36 + 8 * 5


def test_papers_grid_has_one_row_and_column_less() -> None:
    assert papers_grid(224, 16).shape == (52, 52)
    assert papers_grid(224, 16).tops[0] == 0


def test_positions_of_a_scaling_panel_are_in_the_middle() -> None:
    grid = Point.of("positions", "resnet18", 8).grid()
    assert grid.shape == (8, 8)
    assert abs(grid.tops[0] - (224 - grid.tops[-1] - 16)) <= 8
    assert Point.of("positions", "resnet18", 53).grid().count == 2809


def test_only_the_first_model_is_in_every_panel() -> None:
    found = list(points(list(PANELS), ["a", "b"]))
    assert {point.panel for point in found if point.model == "b"} == {"patch"}
    assert len({point.panel for point in found if point.model == "a"}) == len(PANELS)


def test_even_draws_from_everywhere() -> None:
    assert [place // 25 for place in even(range(100), 4)] == [0, 1, 2, 3]
    assert even(range(3), 5) == [0, 1, 2]
    columns = [place % 64 for place in even(range(64 * 64), 8)]  # of as many tiles, listed row by row
    assert len(set(columns)) > 5  # not the same column every time


class Clock:
    """Seconds that the test gives out, one after the other."""

    def __init__(self, *seconds: float) -> None:
        self.seconds: Iterator[float] = iter(seconds)

    def perf_counter(self) -> float:
        return next(self.seconds)


def watch(monkeypatch: pytest.MonkeyPatch, sizes: list[int], *starts: float) -> Watched:
    monkeypatch.setattr(peers, "time", Clock(*starts))
    watched = Watched(nn.Identity())
    for size in sizes:
        watched(torch.zeros(size))
    return watched


def test_a_watched_model_counts_positions_between_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(monkeypatch, [1, 16, 16, 16], 0.0, 1.0, 1.1, 1.3, 1.6)
    assert watched.watched() == (16, pytest.approx(0.2))  # not the base image, nor the pass that warms up
    with pytest.raises(EnoughError):
        watched(torch.zeros(16))
    assert watched.watched() == (32, pytest.approx(0.5))


def test_one_long_pass_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(monkeypatch, [1, 64], 0.0, 0.2, 9.2)
    with pytest.raises(EnoughError):
        watched(torch.zeros(64))
    assert watched.watched() == (64, pytest.approx(9.0))


def row(**ms: float) -> dict[str, Any]:
    details = {name: {"rounds_ms": [value]} for name, value in ms.items()}
    aims = {"fastest": 2.5, "tolerance": 5.0}
    known = {"model": "resnet18", "size": 224, "allocator": "tuned", "ms": ms, "details": details, "wanted": aims}
    return known | ratios(known)


def test_the_fastest_stock_inference_is_what_counts() -> None:
    measured = row(naive=20.0, channels_last=16.0, compiled=15.0, captum=5.0, exact=5.0, tolerance=3.0)
    assert measured["speedups"]["exact/fastest"] == 3.0
    assert measured["speedups"]["tolerance/fastest"] == 5.0


def test_tables_say_which_aims_are_missed() -> None:
    shown = "\n".join(tables.markdown(table) for table in tables.of([row(channels_last=10.0, exact=5.0)]))
    assert "2.00× < 2.5" in shown
    assert "– (≥ 5)" in shown


def test_rows_come_in_the_order_of_cases_tuned_first() -> None:
    rows = [{"model": m, "size": 224, "allocator": a} for a in ("default", "tuned") for m in ("resnet18", "vgg16")]
    assert [(r["allocator"], r["model"]) for r in sorted(rows, key=key)] == [
        ("tuned", "vgg16"), ("tuned", "resnet18"), ("default", "vgg16"), ("default", "resnet18"),
    ]  # fmt: skip


def test_judged_queries_share_no_sizes_with_those_that_are_learnt_from() -> None:
    for field in ("patches", "strides", "regions"):
        assert not set(getattr(estimate.LEARNT, field)) & set(getattr(estimate.JUDGED, field))


@pytest.mark.parametrize("mode", estimate.MODES)
def test_drawn_queries_have_the_positions_that_were_asked_for(mode: str) -> None:
    generator = random.Random(0)
    for values in (estimate.LEARNT, estimate.JUDGED):
        for _ in range(20):
            asked = estimate.draw("net", 160, mode, values, generator)
            fewest, most = estimate.POSITIONS[mode]
            grid = Grid((160, 160), (asked.patch, asked.patch), (asked.stride, asked.stride), asked.region)
            assert fewest <= grid.count == asked.positions <= most


def judged(
    known: float,
    unseen: float,
    actual: float,
    *,
    first: bool = False,
    memory: int | None = 100,
    runs: Sequence[float] = (),
) -> dict[str, Any]:
    estimates = {
        name: {"seconds": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "memory_bytes": 50}
        for name, seconds in (("known", known), ("unseen", unseen))
    }
    actuals = {"seconds": actual, "memory_bytes": memory, "runs": list(runs) or [actual]}
    return estimates | {"model": "a" if first else "b", "mode": "exact", "actual": actuals, "first_model": first}


def test_errors_of_estimates_are_relative_to_what_happened() -> None:
    rows = [judged(1.0, 1.5, 1.25, first=True), judged(2.0, 3.0, 2.0), judged(2.1, 1.0, 2.0, memory=None)]
    found = estimate.summaries(rows)
    assert found["known model"]["median"] == pytest.approx(0.05)
    assert found["known model"]["within"] == pytest.approx(2 / 3)
    assert found["known model"]["memory"] == pytest.approx(0.5)
    assert found["unseen model"]["queries"] == 2
    assert found["unseen model"]["median"] == pytest.approx(0.5)
    assert found["nothing but the profile"]["median"] == pytest.approx(0.2)
    assert found["known model: a"]["queries"] == 1
    assert "unseen model: a" not in found
    assert "5.0%" in tables.markdown(estimate.table(found))


def test_a_query_that_runs_several_times_says_what_the_machine_makes_of_estimates() -> None:
    rows = [judged(1.0, 1.0, 1.0, runs=[2.0, 1.0, 3.0]), judged(1.0, 1.0, 1.0, runs=[1.0, 1.0, 1.0])]
    again = estimate.summaries(rows)["a run against the other runs of the same query"]
    assert again["queries"] == 6
    assert again["median"] == pytest.approx(0)
    assert again["90th percentile"] == pytest.approx(0.8)  # of 0, 0, 0, 0, 0.6 and 1
    assert "80.0%" in tables.markdown(estimate.table(estimate.summaries(rows)))
    assert "a run against" not in str(estimate.summaries([judged(1.0, 1.0, 1.0)]))
    steady = [judged(1.0, 1.0, 1.0, runs=[1.0, 1.0, 1.0])]
    assert estimate.summaries(steady)["a perfect estimate"]["90th percentile"] == pytest.approx(0)
    # medians of three vary less than one run does
    assert 0 < estimate.summaries(rows)["a perfect estimate"]["90th percentile"] < again["90th percentile"]


def picture(setting: str, number: int, ssims: dict[str, float], accuracy: float = 0.9, reach: float = 0.5) -> dict[str, Any]:
    """A row of the approximate benchmark: exact twice as fast as naive, every clause twice as fast as exact."""
    rest = {"rmse": 0.01, "spearman": 0.9, "top10": 0.9, "said": None, "naive": 4.0, "exact": 2.0, "seconds": 1.0}
    return {
        "setting": setting,
        "picture": number,
        "accuracy": accuracy,
        "range": reach,
        "positions": 9,
        "seconds": {"naive": 4.0, "exact": 2.0},
        "maps": {clause: {"ssim": ssim if reach >= 0.02 else None} | rest for clause, ssim in ssims.items()},
    }


def aim_of(rows: list[dict[str, Any]], title: str, model: str) -> list[str]:
    return next(list(line) for line in approximate_tables.aims(rows).rows if line[0].startswith(title) and line[1] == model)


def test_aims_are_judged_by_medians_of_good_settings_alone() -> None:
    rows = [picture("resnet18/xray", n, {"keep => 0.99": ssim, "tau => 0.8": 0.5}) for n, ssim in enumerate((0.95, 0.91, 0.1))]
    whole = aim_of(rows, "whole map, SSIM ≥ 0.90", "ResNet18")
    assert whole[3:] == ["4.0× < 6.5", "keep => 0.99", "0.910", "3"]
    assert aim_of(rows, "whole map, SSIM ≥ 0.97", "ResNet18")[3] == "none is good enough"
    assert aim_of(rows, "whole map, SSIM ≥ 0.90", "VGG16")[3] == "not measured"
    useless = [picture("resnet18/xray", 0, {"keep => 0.99": 0.95}, accuracy=0.5), picture("resnet18/xray", 1, {}, reach=0.01)]
    assert aim_of(useless, "whole map, SSIM ≥ 0.90", "ResNet18")[3] == "not measured"


def test_aims_of_a_drill_down_look_at_its_set_and_its_clauses() -> None:
    drilldown = "keep => 0.99, drilldown => 0.4, speedup => 2"
    rows = [
        picture("resnet18/xray", 0, {drilldown: 0.95, "keep => 0.99": 0.95}),
        picture("resnet18/retina", 0, {drilldown: 0.1}),
    ]
    assert aim_of(rows, "X-ray setting", "ResNet18")[4] == drilldown
    assert aim_of(rows, "OCT setting", "ResNet18")[3] == "none is good enough"


def test_all_settings_stand_in_one_table_each_with_its_own_drill_down() -> None:
    maps = {"keep => 0.99": 0.9, "drilldown => 0.4, speedup => 2": 0.8, "drilldown => 0.1, speedup => 5": 0.1}
    table = approximate_tables.overview([picture("resnet18/xray", n, maps) for n in range(2)] + [picture("demo/retina", 0, {})])
    (line,) = (dict(zip(table.headings, row, strict=True)) for row in table.rows)
    assert line["setting"] == "ResNet18, X-ray (r 0.4, s 2)"
    assert (line["pictures"], line["exact"], line["keep 0.99"]) == ("2", "2.0×", "4.0×, 0.900")
    assert (line["drill-down (r, s)"], line["keep 0.999"]) == ("4.0×, 0.800", "–")


def test_estimates_are_compared_with_the_truth_by_what_was_left_out() -> None:
    rows = [picture("resnet18/xray", 0, {"keep => 0.99": 0.9, "keep => 0.9, drilldown => 0.4, speedup => 2": 0.8})]
    rows += [
        picture("resnet18/xray", 1, {"keep => 0.99": 0.7}),
        picture("resnet18/xray", 2, {"keep => 0.99": 0.1}, accuracy=0.5),
    ]
    for row in rows:
        for entry in row["maps"].values():
            entry["said"] = 0.86
    found = {line[0]: line[1:3] for line in approximate_tables.estimates(rows).rows}
    assert found == {"keep": ("2", "50%"), "keep and drilldown": ("1", "0%"), "all": ("3", "33%")}


def test_maps_of_a_picture_are_replaced_one_by_one() -> None:
    old = picture("resnet18/xray", 0, {"tau => 0.8": 0.5, "keep => 0.99": 0.5})
    rows = approximate.merged([old, picture("demo/retina", 3, {})], picture("resnet18/xray", 0, {"keep => 0.99": 0.9}))
    assert [row["setting"] for row in rows] == ["demo/retina", "resnet18/xray"]
    assert {clause: found["ssim"] for clause, found in rows[1]["maps"].items()} == {"tau => 0.8": 0.5, "keep => 0.99": 0.9}


def test_a_map_without_times_keeps_those_of_the_one_that_it_replaces() -> None:
    old, new = (picture("resnet18/xray", 0, {"keep => 0.99": ssim}) for ssim in (0.5, 0.9))
    old["maps"]["keep => 0.99"]["commit"], new["maps"]["keep => 0.99"]["commit"] = "older", "newer"
    new["maps"]["keep => 0.99"] |= {"seconds": None, "naive": None, "exact": None}
    (row,) = approximate.merged([old], new)
    found = row["maps"]["keep => 0.99"]
    assert (found["ssim"], found["seconds"], found["naive"], found["exact"]) == (0.9, 1.0, 4.0, 2.0)
    assert (found["commit"], found["timed"]) == ("newer", "older")
    (row,) = approximate.merged([row], old)
    assert "timed" not in row["maps"]["keep => 0.99"]


def test_pictures_and_findings_of_the_settings_belong_together() -> None:
    for name in settings.SETS:
        of = settings.SETS[name]
        image, box = of.draw(of.classes()[-1], 3, 96)
        assert image.shape == (96, 96, 3)
        assert box is not None
        hidden = settings._hide(image, box)
        top, left, height, width = box
        assert (hidden[top : top + height, left : left + width] == settings.GRAY).all()
        assert (hidden != image).any(2).sum() <= (height + 4) * (width + 4)
    assert len({str(setting) for setting in settings.NINE}) == 9
    with pytest.raises(KeyError, match="no setting"):
        settings.Setting.parse("resnet18/lungs")


def test_crops_are_squares_with_the_finding_inside() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[40:50, 5:17] = 1
    for seed in range(20):
        crop = settings._cut(image, np.random.default_rng(seed), 24, (40, 5, 10, 12))
        assert crop.shape == (24, 24, 3)
        assert crop[..., 0].sum() == 120


def test_zeros_are_counted_in_one_occlusion_and_in_those_multiplied_together() -> None:
    counts = zeros.Counts()
    values = torch.zeros(zeros.TOGETHER, 4, 1, 2)
    values[:, 0] = 1.0  # both places; the other channels of the second place are zero everywhere
    values[3, 1, 0, 0] = 1.0
    counts.add(values, work=5)
    assert counts.shares["one"] == pytest.approx((2 * 12 + 1) / (2 * 4 * 12))
    assert counts.shares["together"] == pytest.approx((1 + 2) / (2 * 4))
    assert zeros.Counts().shares == {"one": None, "together": None}


@pytest.mark.parametrize("name", interpolation.FILLS)
def test_every_interpolation_keeps_what_is_known_and_finds_planes_roughly(name: str) -> None:
    grid = Grid((60, 60), interpolation.PATCH, interpolation.STRIDE)
    plane = grid.rectangles().reshape(-1, 4)[:, :2].float() @ torch.tensor([[0.1, 1.0], [0.2, -1.0]])
    lattice = evenly(grid.shape[0], 3), evenly(grid.shape[1], 3)
    known = torch.zeros(grid.shape, dtype=torch.bool)
    known[torch.tensor(lattice[0])[:, None], torch.tensor(lattice[1])] = True
    known = known.flatten()
    filled = interpolation.FILLS[name](torch.where(known[:, None], plane, 0.0), grid, known, lattice)
    assert torch.equal(filled[known], plane[known])
    assert float((filled - plane).abs().mean()) < 0.02 * float(plane.std())


def test_an_estimate_is_judged_by_the_median_of_its_runs() -> None:
    runs = [{"seconds": s, "wall_seconds": s + 1, "memory_bytes": m} for s, m in ((3.0, 10), (1.0, 30), (2.0, 20))]
    found = estimate.together(runs)
    assert (found["seconds"], found["wall_seconds"], found["memory_bytes"]) == (2.0, 3.0, 30)
