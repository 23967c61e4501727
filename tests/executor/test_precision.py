"""Low-precision deltas: off by default, within the tolerance when asked for, and taken back where they cost too much."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.judge import settings_of
from support.processor import needs_pairs
from torch import nn

from krypton import planner
from krypton.executor import execute
from krypton.ir.occlusions import Grid
from krypton.ir.plan import QueryPlan
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.kernels import find
from krypton.planner.capture import CapturedModel, capture
from krypton.planner.optimizer import plan_query
from krypton.planner.precision import Choice, assign, in_low_precision

pytestmark = needs_pairs

GRID = Grid((40, 40), (8, 8), (4, 4))


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in ((3, 64), (64, 128), (128, 128), (128, 256)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(256, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    return capture(model.eval(), (3, 40, 40))


def plan_at(captured: CapturedModel, tolerance: float) -> QueryPlan:
    settings = settings_of({"disabled_rules": "full_when_cheaper", "tolerance": tolerance})
    return plan_query(captured, GRID, settings=settings)


def probabilities(plan: QueryPlan, captured: CapturedModel) -> tuple[torch.Tensor, torch.Tensor, object]:
    image = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(3))
    run = execute(plan, image, torch.zeros(3, 40, 40), weights=captured.weights)
    logits = torch.zeros(GRID.count, 5)
    for batch in run:
        logits[batch.indices] = batch.logits
    target = int(run.base_logits.argmax())
    return logits.softmax(1)[:, target], run.base_logits.softmax(0)[target], run.precision


def lowered(plan: QueryPlan) -> int:
    assert plan.tensor is not None
    return len(in_low_precision(plan.tensor.graph))


def test_exact_is_the_default(captured: CapturedModel) -> None:
    plan = plan_at(captured, 0.0)
    assert lowered(plan) == 0
    assert probabilities(plan, captured)[2] is None


@pytest.mark.parametrize("tolerance", [0.05, 0.004, 1e-6])
def test_scores_stay_within_the_tolerance(captured: CapturedModel, tolerance: float) -> None:
    plan = plan_from_json(plan_to_json(plan_at(captured, tolerance)))
    exact, base, _ = probabilities(plan_at(captured, 0.0), captured)
    mine, _, precision = probabilities(plan, captured)
    error = float((mine - exact).square().mean().sqrt() / (exact - base).square().mean().sqrt())
    assert error <= tolerance
    if tolerance == 0.05:
        assert lowered(plan) > 0
        assert precision.convolutions > 0
        assert 0 < precision.error <= 0.05
        assert error > 0
    elif tolerance == 1e-6:
        assert lowered(plan) == 0


def test_layers_that_err_more_than_was_thought_go_back_to_float32(
    captured: CapturedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # all that may be in low precision is proposed, and only what is measured can say that it is too much
    monkeypatch.setattr(planner.precision, "USUAL_SENSITIVITY", 1e-6)
    plan = plan_at(captured, 2e-3)
    assert plan.tensor is not None
    exact, base, _ = probabilities(plan_at(captured, 0.0), captured)
    mine, _, precision = probabilities(plan, captured)
    assert lowered(plan) > precision.convolutions
    assert float((mine - exact).square().mean().sqrt() / (exact - base).square().mean().sqrt()) <= 2e-3


def test_the_assignment_keeps_the_tolerance_and_saves_what_it_can() -> None:
    options = {
        1: [Choice("direct", 10.0, 0.0), Choice("bfloat16", 5.0, 3e-3)],
        2: [Choice("direct", 1.0, 0.0), Choice("bfloat16", 0.5, 3e-3)],
        3: [Choice("direct", 10.0, 0.0), Choice("bfloat16", 5.0, 3e-3)],
    }
    sensitive = {1: 1.0, 2: 1.0, 3: 20.0}
    assert assign(options, sensitive, 1.0) == dict.fromkeys(options, "bfloat16")
    assert assign(options, sensitive, 0.0) == dict.fromkeys(options, "direct")
    # the third layer alone would cost twenty times what the first does
    assert assign(options, sensitive, 5e-3) == {1: "bfloat16", 2: "bfloat16", 3: "direct"}
    assert assign(options, sensitive, 3.5e-3) == {1: "bfloat16", 2: "direct", 3: "direct"}


def test_kernels_say_how_much_they_err() -> None:
    assert find("conv", "direct").error == 0
    assert 0 < find("conv", "bfloat16").error < find("conv", "bfloat16_winograd_4").error < math.inf


def test_a_map_in_which_nothing_changes_is_answered(captured: CapturedModel) -> None:
    plan = plan_at(captured, 0.05)
    image = torch.zeros(3, 40, 40)
    run = execute(replace(plan), image, image, weights=captured.weights)
    assert sum(len(batch.indices) for batch in run) == GRID.count
