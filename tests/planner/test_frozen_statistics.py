"""Frozen gates and norms: increments go on behind them; the answer is that of the model in which they are constant."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.judge import Oracle, settings_of
from support.nets import SpecNet
from support.small import GRID, captured_model, image_and_fill, model
from torch import Tensor, nn

from krypton.approximation import check_approximation
from krypton.errors import BindError
from krypton.executor import execute
from krypton.ir.occlusions import Grid
from krypton.ir.plan import Approximation, QueryPlan, TensorPlan
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.kernels import DEFERRED
from krypton.planner.optimizer import plan_query
from krypton.planner.precision import without_approximations

INCREMENTAL = {"disabled_rules": "full_when_cheaper"}
FREEZE = Approximation(freeze=True)


def planned(approximation: Approximation = FREEZE, name: str = "gated", grid: Grid = GRID, **settings: object) -> QueryPlan:
    values = settings_of(INCREMENTAL | settings)
    return plan_query(captured_model(name), grid, mode="approximate", approximation=approximation, settings=values)


def tensor_of(plan: QueryPlan) -> TensorPlan:
    assert plan.tensor is not None
    return plan.tensor


def modes(plan: QueryPlan, op: str) -> set[str]:
    return {node.mode for node in tensor_of(plan).graph if node.op == op}


def answers(plan: QueryPlan, name: str = "gated") -> tuple[Tensor, Tensor]:
    """Logits (n, K) in the order of positions, and which are exact (n,); those that were held out come last."""
    logits, exact = torch.zeros(plan.occlusions.count, 5), torch.zeros(plan.occlusions.count, dtype=torch.bool)
    for batch in execute(plan, *image_and_fill(), weights=captured_model(name).weights):
        logits[batch.indices], exact[batch.indices] = batch.logits, batch.exact
    return logits, exact


def with_constant_statistics(net: SpecNet, image: Tensor) -> nn.Module:
    """The model with gates, means and variances that have, whatever it is asked, the values that one image gives them."""
    parts = [part for part in net.modules() if isinstance(part, nn.GroupNorm)]
    parts += [part for part in net.modules() if isinstance(part, nn.Sequential) and isinstance(part[-1], nn.Sigmoid)]
    for part in parts:
        kept: list[Tensor] = []
        hook = part.register_forward_hook(lambda part, inputs, output, kept=kept: kept.extend((*inputs, output)))
        with torch.no_grad():
            net.eval()(image[None])
        hook.remove()
        if isinstance(part, nn.GroupNorm):
            part.register_forward_hook(partial(normed_as, kept[0]))
        else:
            part.register_forward_hook(lambda _, inputs, output, kept=kept: kept[1].to(output.dtype).expand_as(output))
    assert parts
    return net


def normed_as(other: Tensor, part: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """What a group norm would make of its input, had that the moments of another one."""
    x, groups = inputs[0], part.num_groups
    of_other = other.to(x.dtype).reshape(1, groups, -1)
    spread, mean = of_other.var(2, correction=0).add(part.eps).sqrt(), of_other.mean(2)
    normed = ((x.reshape(len(x), groups, -1) - mean[..., None]) / spread[..., None]).view(x.shape)
    assert part.affine
    return normed * part.weight.to(x.dtype)[:, None, None] + part.bias.to(x.dtype)[:, None, None]


def test_increments_go_on_behind_a_frozen_gate() -> None:
    opaque, frozen = planned(Approximation(tau=1.0)), planned()
    assert modes(opaque, "gate") == {"full"}
    assert modes(frozen, "gate") == {"delta"}
    assert tensor_of(frozen).frozen
    assert modes(frozen, "conv") == {"delta", "frozen"}
    assert "squeeze-and-excitation gates that are frozen: 1" in frozen.notes
    assert plan_from_json(plan_to_json(frozen)) == frozen


def test_increments_go_on_behind_frozen_norms() -> None:
    opaque, frozen = planned(Approximation(tau=1.0), "grouped"), planned(name="grouped")
    assert modes(opaque, "group_norm") == {"full"}
    assert modes(frozen, "gate") == modes(frozen, "combine") == modes(frozen, "conv") == {"delta"}
    assert modes(frozen, "group_scale") == modes(frozen, "group_shift") == {"frozen"}
    assert [node.rules for node in tensor_of(frozen).graph if node.op == "combine" and len(node.inputs) == 3], "sums are fused"
    assert "group norms whose mean and variance are frozen: 3" in frozen.notes
    assert plan_from_json(plan_to_json(frozen)) == frozen


@pytest.mark.parametrize("name", ["gated", "grouped"])
@pytest.mark.parametrize("settings", [{}, {"disabled_rules": "full_when_cheaper,defer_gate"}, {"kernels": "reference"}])
def test_the_answer_is_that_of_the_model_with_constant_statistics(name: str, settings: dict[str, str]) -> None:
    image, fill = image_and_fill()
    plan = planned(name=name, **settings)
    if name == "gated":
        assert {node.kernel == DEFERRED for node in tensor_of(plan).graph if node.op == "gate"} == {not settings}
    logits, exact = answers(plan, name)
    assert not exact.any()
    Oracle(with_constant_statistics(model(name), image), image, fill, GRID).judge(logits)
    with pytest.raises(AssertionError, match="inexact"):
        Oracle(model(name), image, fill, GRID).judge(logits)


@pytest.mark.parametrize("name", ["gated", "grouped"])
def test_fields_behind_what_is_frozen_are_cut_to_where_changes_are(name: str) -> None:
    (image, fill), grid = image_and_fill(), Grid(GRID.image, (4, 3), (1, 2))
    frozen = Oracle(with_constant_statistics(model(name), image), image, fill, grid).reference
    errors = []
    for keep in (0.5, 0.9999):
        logits, exact = answers(planned(Approximation(freeze=True, keep=keep), name, grid, batch=2), name)
        assert 0 < int(exact.sum()) < grid.count
        errors.append(float((logits.double() - frozen)[~exact].norm()))
    assert 0 < errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("name", ["gated", "grouped"])
def test_what_is_held_out_is_exact(name: str) -> None:
    logits, exact = answers(planned(Approximation(freeze=True, quality_share=0.3), name), name)
    wanted = Oracle(model(name), *image_and_fill(), GRID)
    assert 4 <= int(exact.sum()) < GRID.count
    error = (logits.double() - wanted.reference).abs()
    assert (error[exact] <= wanted.allowed).all()
    assert (error[~exact] > wanted.allowed).any()


def test_the_plan_without_approximations_is_whole_inference() -> None:
    exactly = without_approximations(tensor_of(planned()))
    assert not exactly.cut
    assert {node.mode for node in exactly.graph} == {"full"}
    norms = without_approximations(tensor_of(planned(name="grouped"))).graph
    assert [node.op for node in norms if node.op in ("gate", "group_norm", "group_shift")] == ["group_norm"] * 3


def test_without_gates_nothing_is_frozen_and_the_plan_says_so() -> None:
    plan = planned(name="residual")
    assert not tensor_of(plan).cut
    assert "freeze does nothing: there are no gates or group norms within reach" in plan.notes


def test_gates_and_norms_behind_the_end_of_increments_are_as_ever() -> None:
    """Where whole maps are cheaper, as on ones so small, and where increments cannot be."""
    for settings in ({"disabled_rules": ""}, {"disabled_rules": "incremental"}):
        plan = planned(**settings)
        assert modes(plan, "gate") == {"full"}
        assert not tensor_of(plan).frozen
        plan = planned(name="grouped", **settings)
        assert modes(plan, "group_norm") == {"full"}
        assert not modes(plan, "gate")
        Oracle(model("grouped"), *image_and_fill(), GRID).judge(answers(plan, "grouped")[0])
    assert modes(planned(disabled_rules="freeze_statistics,full_when_cheaper"), "gate") == {"full"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": 1}, "freeze is TRUE or FALSE, not 1"),
        ({"freeze": True, "ssim": 0.9}, "ssim is a goal, and freeze already says"),
    ],
)
def test_mistakes(options: dict[str, object], message: str) -> None:
    with pytest.raises(BindError, match=message):
        check_approximation(options, seed=0)


def test_freeze_goes_together_with_everything_else() -> None:
    assert check_approximation({"freeze": True}, seed=0).drilldown is None
    assert check_approximation({"freeze": False}, seed=0).drilldown is not None
    both = check_approximation({"freeze": True, "tau": 0.5, "keep": 0.9, "drilldown": 0.1}, seed=0)
    assert both.names() == ["freeze", "tau 0.5", "keep 0.9", "drilldown 0.1", "speedup 3"]
