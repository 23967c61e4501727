"""Tilings: complete, bounded, and as cheap as brute force finds; and what the cost model says of known networks."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from support.judge import settings_of
from support.random_nets import occlusions
from support.small import GRID, MODELS, captured_model

from krypton.ir.geometry import Interval
from krypton.ir.graph import Graph
from krypton.ir.occlusions import Grid, Masks, Occlusions, Tiling
from krypton.ir.plan import QueryPlan
from krypton.planner import tiles
from krypton.planner.capture import capture
from krypton.planner.cost import DeviceProfile, plan_costs
from krypton.planner.fields import Fields
from krypton.planner.optimizer import plan_query
from krypton.planner.tiles import cheapest_tiling, even_tiling, sample, single_tiling


def planned(name: str, asked: Occlusions = GRID, **values: object) -> QueryPlan:
    return plan_query(captured_model(name), asked, settings=settings_of({"disabled_rules": "full_when_cheaper"} | values))


def graph_of(name: str) -> Graph:
    tensor = planned(name).tensor
    assert tensor is not None
    return tensor.graph


def complete(tiling: Tiling, asked: Occlusions) -> bool:
    places = [i for tile in tiling.tiles(asked) for i in tile.indices]
    return sorted(places) == list(range(asked.count))


@settings(max_examples=60)
@given(occlusions((19, 16)), st.integers(0, 9), st.sampled_from(["residual", "dense"]))
def test_every_tiling_holds_every_occlusion_once(asked: Occlusions, batch: int, name: str) -> None:
    found = cheapest_tiling(graph_of(name), asked, DeviceProfile(), settings_of({"batch": batch}))
    assert complete(found, asked)
    assert complete(even_tiling(asked), asked)
    assert complete(single_tiling(asked), asked)
    assert max(len(tile.indices) for tile in single_tiling(asked).tiles(asked)) == 1
    assert max(len(tile.indices) for tile in found.tiles(asked)) <= (batch or tiles.MOST_TOGETHER)


@settings(max_examples=60)
@given(st.data(), st.integers(1, 7), st.floats(0, 20), st.integers(1, 5))
def test_an_axis_is_cut_where_brute_force_cuts_it(data, count: int, overhead: float, longest: int) -> None:
    draw = data.draw
    nodes = draw(st.integers(1, 3))
    steps = [[draw(st.integers(0, 4)) for _ in range(nodes)] for _ in range(2 * count)]
    starts = np.cumsum(np.array(steps[:count], dtype=float), axis=0)
    stops = starts + np.maximum.accumulate(np.array(steps[count:], dtype=float), axis=0)
    weights = np.array([draw(st.floats(0.1, 2)) for _ in range(nodes)])

    def cost(runs: list[range]) -> float:
        return sum(overhead + len(r) * float(weights @ np.maximum(stops[r[-1]] - starts[r[0]], 0)) for r in runs)

    found = tiles._split((starts, stops), weights, overhead, longest)
    assert [i for run in found for i in run] == list(range(count))
    best = np.inf
    for cuts in itertools.product([False, True], repeat=count - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), count]
        runs = [range(a, b) for a, b in itertools.pairwise(edges)]
        if max(map(len, runs)) <= longest:
            best = min(best, cost(runs))
    assert cost(found) == pytest.approx(best)


def test_costly_overhead_makes_large_tiles_and_costly_arithmetic_small_ones() -> None:
    graph, grid = graph_of("residual"), Grid((19, 16), (3, 3), (1, 1))
    slow_start = DeviceProfile(node_overhead_ms=100.0)
    slow_sums = DeviceProfile(multiply_adds_per_ms=1.0, bytes_per_ms=1e15, node_overhead_ms=0.0)
    few = cheapest_tiling(graph, grid, slow_start, settings_of()).tiles(grid)
    many = cheapest_tiling(graph, grid, slow_sums, settings_of()).tiles(grid)
    assert len(few) < len(many)


def test_masks_near_each_other_come_together() -> None:
    masks = torch.zeros(8, 19, 16, dtype=torch.bool)
    for number, mask in enumerate(masks):
        corner = 0 if number % 2 else 12
        mask[corner : corner + 2, corner : corner + 2] = True
    slow_sums = DeviceProfile(multiply_adds_per_ms=10.0, bytes_per_ms=1e15, node_overhead_ms=0.0)
    tiling = cheapest_tiling(graph_of("residual"), Masks(masks), slow_sums, settings_of())
    assert all(len({i % 2 for i in group}) == 1 for group in tiling.groups)


def test_samples_are_even_and_have_both_ends() -> None:
    all_tiles = single_tiling(Grid((20, 20), (1, 1), (1, 1))).tiles(Grid((20, 20), (1, 1), (1, 1)))
    drawn = sample(all_tiles, 7)
    assert (len(drawn), drawn[0], drawn[-1]) == (7, all_tiles[0], all_tiles[-1])
    assert sample(all_tiles[:3], 7) == all_tiles[:3]


@pytest.mark.parametrize("name", MODELS)
def test_deltas_are_stored_where_their_field_is(name: str) -> None:
    graph = graph_of(name)
    fields = Fields(graph)
    for axis, side in ((0, 19), (1, 16)):
        for start in range(0, side - 2, 3):
            spans = fields.axis(axis, Interval(start, start + 2))  # type: ignore[arg-type]
            larger = fields.axis(axis, Interval(max(start - 1, 0), start + 2))  # type: ignore[arg-type]
            for node in graph:
                if node.id not in spans:
                    continue
                field, stored = spans[node.id]
                assert stored.contains(field)
                assert larger[node.id].field.contains(field)
                if node.spatial and not field.empty:
                    assert 0 <= field.start < field.stop <= node.shape[1 + axis]


def test_the_arithmetic_of_resnet18_is_what_the_design_says() -> None:
    """Full over incremental multiply-adds with the tightest fields: 2.84× at 224², patch 16, stride 4."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    captured = capture(torchvision.models.resnet18(), (3, 224, 224))
    grid = Grid((224, 224), (16, 16), (4, 4))
    plan = plan_query(captured, grid, settings=settings_of())
    assert plan.tensor is not None
    graph = plan.tensor.graph
    every = single_tiling(grid).tiles(grid)
    costs = plan_costs(graph, Fields(graph), every, 1, DeviceProfile())
    convolutions = [costs[node.id] for node in graph if node.op == "conv"]
    full = sum(cost.full_multiply_adds for cost in convolutions)
    assert full == pytest.approx(1.814e9, rel=1e-3)
    assert full / sum(cost.multiply_adds for cost in convolutions) == pytest.approx(2.84, abs=0.01)
    chosen = sum(cost.multiply_adds for node, cost in plan.tensor.costs.items() if graph.index()[node].op == "conv")
    assert full / chosen > 2.3  # large tiles trade some of it for fewer reads of the weights
    plan = plan_query(captured, grid, settings=settings_of({"batch": 16}))
    assert plan.tensor is not None
    chosen = sum(cost.multiply_adds for node, cost in plan.tensor.costs.items() if graph.index()[node].op == "conv")
    assert full / chosen > 2.6
