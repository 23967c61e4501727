"""The benchmarks' own arithmetic, where a mistake would make a wrong claim; nothing is timed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import estimate, peers, tables, theory
from benchmarks.cases import even
from benchmarks.exact import key, ratios
from benchmarks.papers import papers_grid
from benchmarks.peers import EnoughError, Watched
from benchmarks.scaling import PANELS, Point, points
from krypton.ir.occlusions import Grid
from krypton.planner.capture import CapturedModel, capture
from krypton.planner.optimizer import plan_query
from krypton.planner.tiles import single_tiling


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
    return capture(nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval(), (3, 32, 32))


GRID = Grid((32, 32), (4, 4), (4, 4))


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


def judged(known: float, unseen: float, actual: float, *, first: bool = False, memory: int | None = 100) -> dict[str, Any]:
    estimates = {
        name: {"seconds": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds, "memory_bytes": 50}
        for name, seconds in (("known", known), ("unseen", unseen))
    }
    actuals = {"seconds": actual, "memory_bytes": memory}
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
