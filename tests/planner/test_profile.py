"""Device profiles: rates found near what was measured, learned from, kept; and kernels chosen by them."""

from __future__ import annotations

import json

import pytest
import torch
from support.judge import settings_of
from support.small import GRID, captured_model

from krypton.errors import PlanError
from krypton.ir.delta import Box
from krypton.ir.geometry import Interval
from krypton.ir.graph import Node
from krypton.ir.occlusions import Grid
from krypton.kernels import find, native
from krypton.planner.calibration import calibrate, measure
from krypton.planner.cost import Pricing
from krypton.planner.observation import observed
from krypton.planner.optimizer import plan_query
from krypton.planner.profile import DeviceProfile, KernelRate, Shape

CPU = torch.device("cpu")
SMALL, LARGE = Shape(64, 32, 100), Shape(2048, 512, 3000)
MEASURED = DeviceProfile(rates=(KernelRate("direct", SMALL, 1e7), KernelRate("direct", LARGE, 1e8)))
DELTAS: dict[str, object] = {"disabled_rules": "full_when_cheaper"}
CONV = {
    "kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1, 1, 1, 1], "groups": 1, "in_channels": 64,
}  # fmt: skip


def conv(outputs: int = 64, **attrs: object) -> Node:
    return Node(1, "conv", (0,), (outputs, 28, 28), {**CONV, **attrs}, {"weight": "w"}, mode="delta")


def test_a_rate_is_that_of_the_nearest_measurements() -> None:
    assert MEASURED.rate("direct", SMALL) == pytest.approx(1e7, rel=0.01)
    assert MEASURED.rate("direct", LARGE) == pytest.approx(1e8, rel=0.01)
    assert 1e7 < MEASURED.rate("direct", Shape(400, 128, 500)) < 1e8
    assert MEASURED.rate("onednn", SMALL) == MEASURED.multiply_adds_per_ms


def test_a_profile_learns_new_shapes_at_once_and_known_ones_slowly() -> None:
    learned = MEASURED.learn([KernelRate("direct", SMALL, 4e7), KernelRate("direct", Shape(9, 9, 9), 5.0)])
    assert 1e7 < learned.rate("direct", SMALL) < 4e7
    assert learned.rate("direct", Shape(9, 9, 9)) == pytest.approx(5.0, rel=0.01)
    assert len(learned.rates) == len(MEASURED.rates) + 1


def test_profiles_survive_json_and_damaged_ones_are_refused() -> None:
    assert DeviceProfile.from_json(MEASURED.to_json()) == MEASURED
    good = json.loads(MEASURED.to_json())
    for damage in ({"rates": [["direct", 1, 1, 1, -5]]}, {"bytes_per_ms": 0}, {"rates": 3}, {"node_overhead_ms": "NaN"}):
        with pytest.raises(PlanError, match="CALIBRATE"):
            DeviceProfile.from_json(json.dumps(good | damage))
    with pytest.raises(PlanError, match="no device profile"):
        DeviceProfile.from_json("{")


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_the_kernel_that_is_measured_fastest_is_ranked_first() -> None:
    box = Box(Interval(0, 14), Interval(0, 14))
    fast = {"direct": 1e8, "winograd_4": 1e6}
    profile = DeviceProfile(rates=tuple(KernelRate(name, LARGE, rate) for name, rate in fast.items()))
    assert [cost.kernel for cost in Pricing(conv(), profile).kernels(box, 16)] == ["direct", "winograd_4"]
    fast = {"direct": 1e8, "winograd_4": 1e8}  # it makes fewer multiplications
    profile = DeviceProfile(rates=tuple(KernelRate(name, LARGE, rate) for name, rate in fast.items()))
    assert [cost.kernel for cost in Pricing(conv(), profile).kernels(box, 16)] == ["winograd_4", "direct"]


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_a_winograd_kernel_makes_the_multiplications_of_whole_tiles() -> None:
    work = find("conv", "winograd_4").work
    assert work is not None
    assert work(conv(), 4, 4) == work(conv(), 1, 3) == 36 * 64 * 64
    assert work(conv(), 5, 4) == 2 * 36 * 64 * 64
    assert work(conv(kernel=[1, 7], padding=[0, 0, 3, 3]), 3, 4) == 3 * 10 * 64 * 64


@pytest.mark.parametrize("net", ["residual", "dense", "gated", "mobile"])
def test_kernels_asked_for_by_name_are_taken_where_they_can_be(net: str) -> None:
    plan = plan_query(captured_model(net), GRID, settings=settings_of(DELTAS | {"kernels": "onednn"}))
    assert plan.tensor is not None
    names = {node.own_kernel for node in plan.tensor.graph if node.op == "conv" and node.mode == "delta"}
    assert "onednn" in names
    assert names <= {"onednn", "direct", "depthwise", "reference"}
    with pytest.raises(PlanError, match="winograd_4"):
        plan_query(captured_model("residual"), GRID, settings=settings_of({"kernels": "winograd_5"}))


def test_measuring_gives_every_kernel_a_rate() -> None:
    node = conv(16, in_channels=16)
    found = {rate.kernel: rate.per_ms for rate in measure(node, 6, CPU)}
    assert all(rate > 0 for rate in found.values())
    assert found
    assert native.library() is None or {"direct", "winograd_2", "winograd_4", "onednn"} <= set(found)


def test_a_calibrated_profile_holds_the_convolutions_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krypton.planner.calibration._usual", lambda: iter([(conv(16, in_channels=16), 5)]))
    plan = plan_query(captured_model("residual"), GRID, settings=settings_of(DELTAS))
    seen: list[tuple[int, int]] = []
    profile = calibrate(CPU, [plan], lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 1
    assert {rate.shape.depth for rate in profile.rates} > {144}
    assert min(profile.bytes_per_ms, profile.node_overhead_ms, profile.cache_bytes, profile.multiply_adds_per_ms) > 0


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_finished_queries_are_observed_by_kernel_and_shape() -> None:
    many = Grid(GRID.image, (4, 3), (2, 2))
    plan = plan_query(captured_model("residual"), many, settings=settings_of(DELTAS | {"kernels": "direct", "batch": 4}))
    assert plan.tensor is not None
    spent = {node.id: 2.0 for node in plan.tensor.graph}
    rates = observed(plan, spent)
    assert rates
    assert all(rate.per_ms > 0 and rate.shape.rows > 0 for rate in rates)
    assert observed(plan, {}) == []
