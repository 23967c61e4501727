"""Frozen gates: increments go on behind them, and the answer is that of the model whose gates are constant."""

from __future__ import annotations

import pytest
import torch
from support.judge import Oracle, settings_of
from support.nets import SpecNet
from support.small import GRID, captured_model, image_and_fill, model
from torch import Tensor, nn

from krypton.approximation import check_approximation
from krypton.errors import BindError
from krypton.executor import execute
from krypton.ir.plan import Approximation, QueryPlan, TensorPlan
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.kernels import DEFERRED
from krypton.planner.optimizer import plan_query
from krypton.planner.precision import without_approximations

INCREMENTAL = {"disabled_rules": "full_when_cheaper"}
FREEZE = Approximation(freeze=True)


def planned(approximation: Approximation = FREEZE, name: str = "gated", **settings: object) -> QueryPlan:
    values = settings_of(INCREMENTAL | settings)
    return plan_query(captured_model(name), GRID, mode="approximate", approximation=approximation, settings=values)


def tensor_of(plan: QueryPlan) -> TensorPlan:
    assert plan.tensor is not None
    return plan.tensor


def modes(plan: QueryPlan, op: str) -> set[str]:
    return {node.mode for node in tensor_of(plan).graph if node.op == op}


def answers(plan: QueryPlan) -> tuple[Tensor, Tensor]:
    """Logits (n, K) in the order of positions, and which are exact (n,); those that were held out come last."""
    logits, exact = torch.zeros(GRID.count, 5), torch.zeros(GRID.count, dtype=torch.bool)
    for batch in execute(plan, *image_and_fill(), weights=captured_model("gated").weights):
        logits[batch.indices], exact[batch.indices] = batch.logits, batch.exact
    return logits, exact


def with_constant_gates(net: SpecNet, image: Tensor) -> nn.Module:
    """The model with gates that have, whatever it is asked, the values that one image gives them."""
    gates = [part for part in net.modules() if isinstance(part, nn.Sequential) and isinstance(part[-1], nn.Sigmoid)]
    for gate in gates:
        kept: list[Tensor] = []
        hook = gate.register_forward_hook(lambda _, inputs, output, kept=kept: kept.append(output))
        with torch.no_grad():
            net.eval()(image[None])
        hook.remove()
        gate.register_forward_hook(lambda _, inputs, output, kept=kept: kept[0].to(output.dtype).expand_as(output))
    assert gates
    return net


def test_increments_go_on_behind_a_frozen_gate() -> None:
    opaque, frozen = planned(Approximation(tau=1.0)), planned()
    assert modes(opaque, "gate") == {"full"}
    assert modes(frozen, "gate") == {"delta"}
    assert tensor_of(frozen).frozen
    assert modes(frozen, "conv") == {"delta", "frozen"}
    assert "squeeze-and-excitation gates that are frozen: 1" in frozen.notes
    assert plan_from_json(plan_to_json(frozen)) == frozen


@pytest.mark.parametrize("settings", [{}, {"disabled_rules": "full_when_cheaper,defer_gate"}, {"kernels": "reference"}])
def test_the_answer_is_that_of_the_model_with_constant_gates(settings: dict[str, str]) -> None:
    image, fill = image_and_fill()
    plan = planned(**settings)
    assert {node.kernel == DEFERRED for node in tensor_of(plan).graph if node.op == "gate"} == {not settings}
    logits, exact = answers(plan)
    assert not exact.any()
    Oracle(with_constant_gates(model("gated"), image), image, fill, GRID).judge(logits)
    with pytest.raises(AssertionError, match="inexact"):
        Oracle(model("gated"), image, fill, GRID).judge(logits)


def test_what_is_held_out_is_exact() -> None:
    logits, exact = answers(planned(Approximation(freeze=True, quality_share=0.3)))
    wanted = Oracle(model("gated"), *image_and_fill(), GRID)
    assert 4 <= int(exact.sum()) < GRID.count
    error = (logits.double() - wanted.reference).abs()
    assert (error[exact] <= wanted.allowed).all()
    assert (error[~exact] > wanted.allowed).any()


def test_the_plan_without_approximations_is_whole_inference() -> None:
    exactly = without_approximations(tensor_of(planned()))
    assert not exactly.cut
    assert {node.mode for node in exactly.graph} == {"full"}


def test_without_gates_nothing_is_frozen_and_the_plan_says_so() -> None:
    plan = planned(name="residual")
    assert not tensor_of(plan).cut
    assert "freeze does nothing: there are no gates within reach" in plan.notes


def test_gates_behind_the_end_of_increments_are_as_ever() -> None:
    """Where whole maps are cheaper, as on ones so small, and where increments cannot be."""
    for settings in ({"disabled_rules": ""}, {"disabled_rules": "incremental"}):
        plan = planned(**settings)
        assert modes(plan, "gate") == {"full"}
        assert not tensor_of(plan).frozen
    assert modes(planned(disabled_rules="freeze_gates,full_when_cheaper"), "gate") == {"full"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": 1}, "freeze is TRUE or FALSE, not 1"),
        ({"freeze": True, "keep": 0.9}, "freeze and keep do not go together"),
        ({"freeze": True, "ssim": 0.9}, "ssim is a goal, and freeze already says"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(BindError, match=message):
        check_approximation(options, seed=0)


def test_frozen_gates_go_together_with_tau_and_drilldown() -> None:
    assert check_approximation({"freeze": True}, seed=0).drilldown is None
    assert check_approximation({"freeze": False}, seed=0).drilldown is not None
    both = check_approximation({"freeze": True, "tau": 0.5, "drilldown": 0.1}, seed=0)
    assert both.names() == ["freeze", "tau 0.5", "drilldown 0.1", "speedup 3"]
