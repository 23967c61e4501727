"""What plans are predicted to take: parts, sums of stages, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.judge import settings_of
from support.small import GRID, captured_model
from torch import nn

from krypton.ir.geometry import Interval
from krypton.ir.occlusions import Grid, Tiling
from krypton.ir.plan import Approximation, QueryPlan
from krypton.planner.fields import Fields
from krypton.planner.footprint import incremental_bytes, prepared_bytes
from krypton.planner.inference import watch
from krypton.planner.optimizer import plan_query
from krypton.planner.prediction import Prediction, interpolating, predict, predict_naive
from krypton.planner.profile import DeviceProfile

PROFILE = DeviceProfile()
MANY = Grid(GRID.image, (4, 3), (1, 1))


def plan(grid: Grid = MANY, **settings: object) -> QueryPlan:
    chosen = settings_of({"disabled_rules": "full_when_cheaper", **settings})
    return plan_query(captured_model("residual"), grid, settings=chosen)


def test_every_part_of_an_exact_query_is_priced() -> None:
    found = predict(plan(), PROFILE)
    assert set(found.milliseconds) == {"memory", "views", "weights", "tiles", "deltas", "head"}
    assert all(milliseconds > 0 for milliseconds in found.milliseconds.values())
    assert found.seconds == pytest.approx(sum(found.milliseconds.values()) / 1e3)
    assert found.positions == MANY.count


def test_what_an_energy_cut_leaves_is_a_part_of_its_own() -> None:
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    asked = Approximation(keep=0.99, quality_share=0.1)
    cut = plan_query(captured_model("residual"), MANY, mode="approximate", approximation=asked, settings=settings)
    parts, exact = predict(cut, PROFILE).milliseconds, predict(plan(), PROFILE).milliseconds
    assert 0 < parts["cut"] < exact["deltas"]
    assert 0 < parts["deltas"] < exact["deltas"], "of the positions that are measured"


def test_an_occlusion_takes_longer_where_its_changes_are_measured() -> None:
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    asked = Approximation(keep=0.99, quality_share=0.1)
    cut = plan_query(captured_model("residual"), MANY, mode="approximate", approximation=asked, settings=settings)
    measured, every, held_out = cut.stages
    assert (measured.kind, held_out.kind) == ("measure", "hold_out")
    twice = replace(cut, stages=(held_out, every, held_out))  # then both are asked about
    alone = predict(twice, PROFILE).milliseconds["deltas"] / 2
    assert predict(cut, PROFILE).milliseconds["deltas"] > 1.1 * alone


def test_interpolation_is_paid_when_looking_where_to_refine_and_in_the_end() -> None:
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    asked = Approximation(drilldown=0.1, speedup=3.0, quality_share=0.0)
    drilled = plan_query(captured_model("residual"), MANY, mode="approximate", approximation=asked, settings=settings)
    _, refined, rest = (stage.count for stage in drilled.stages)
    assert predict(drilled, PROFILE).milliseconds["between"] == pytest.approx(interpolating(refined + rest + rest, classes=5))


def test_only_what_is_paid_per_position_grows_with_the_positions() -> None:
    few, many = predict(plan(GRID), PROFILE), predict(plan(MANY), PROFILE)
    assert many.milliseconds["deltas"] > 2 * few.milliseconds["deltas"]
    assert many.milliseconds["tiles"] > few.milliseconds["tiles"]
    assert many.milliseconds["views"] == few.milliseconds["views"]
    assert many.multiply_adds > few.multiply_adds


def test_views_that_are_not_shared_are_paid_with_every_tile() -> None:
    apart = plan(disabled_rules="share_views, full_when_cheaper")
    assert apart.tensor is not None
    tiles = len(apart.tensor.tiling.tiles(MANY))
    shared = predict(plan(), PROFILE).milliseconds["views"]
    assert predict(apart, PROFILE).milliseconds["views"] == pytest.approx((1 + tiles) * shared)


def test_a_slower_device_takes_longer() -> None:
    slow = DeviceProfile(multiply_adds_per_ms=1e6, bytes_per_ms=1e5, node_overhead_ms=1.0, rates=())
    assert predict(plan(), slow).seconds > 3 * predict(plan(), PROFILE).seconds


def test_measuring_low_precision_is_paid_for() -> None:
    low = plan(tolerance=10.0)
    assert low.tensor is not None
    if not low.tensor.tolerance:
        pytest.skip("no kernel in low precision on this processor")
    assert predict(low, PROFILE).milliseconds["precision"] > 0


def test_weights_are_laid_out_once() -> None:
    first, later = predict(plan(), PROFILE), predict(plan(), PROFILE, prepared=True)
    assert later.milliseconds["weights"] == 0
    tensor = plan().tensor
    assert tensor is not None
    assert first.memory_bytes - later.memory_bytes == prepared_bytes(tensor.graph) > 0


def test_stages_add_up() -> None:
    one, two = predict(plan(GRID), PROFILE), predict(plan(MANY), PROFILE, prepared=True)
    both = Prediction() + one + two
    assert both.positions == GRID.count + MANY.count
    assert both.seconds == pytest.approx(one.seconds + two.seconds)
    assert both.memory_bytes == max(one.memory_bytes, two.memory_bytes)
    assert (one * 3).seconds == pytest.approx(3 * one.seconds)
    assert (one * 3).multiply_adds == 3 * one.multiply_adds


def test_a_naive_query_is_full_inference_of_its_batches() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inference = watch(module, torch.zeros(1, 3, *GRID.image))
    naive = QueryPlan("naive", MANY, input_shape=(3, *GRID.image), batch=30)
    found = predict_naive(naive, PROFILE, inference)
    whole, left = divmod(MANY.count, 30)
    expected = whole * inference.milliseconds(30, PROFILE) + inference.milliseconds(left, PROFILE)
    assert found.milliseconds["inference"] == pytest.approx(expected)
    assert found.multiply_adds == inference.multiply_adds * (MANY.count + 1)
    alone = predict_naive(QueryPlan("naive", MANY, input_shape=(3, *GRID.image), batch=1), PROFILE, inference)
    assert alone.seconds > found.seconds
    assert alone.memory_bytes < found.memory_bytes


def test_larger_tiles_take_more_memory() -> None:
    rows, columns = MANY.shape
    small = plan(batch=1)
    assert small.tensor is not None
    whole = Tiling(rows=(Interval(0, rows),), columns=(Interval(0, columns),))
    large = replace(small.tensor, tiling=whole)
    fields = Fields(large.graph)
    assert incremental_bytes(small, large, fields) > incremental_bytes(small, small.tensor, fields)
