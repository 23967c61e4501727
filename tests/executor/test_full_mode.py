"""Plans whose nodes run on whole maps: by compiled kernels, by PyTorch where those are not to be had, always exact."""

from __future__ import annotations

import pytest
import torch
from support.judge import Oracle, check_exact, run_plan, settings_of
from support.nets import SpecNet, Step
from support.small import GRID, MODELS, captured_model, image_and_fill, model

from krypton.ir.plan import QueryPlan
from krypton.kernels import native
from krypton.planner.optimizer import plan_query

WHOLE = {"disabled_rules": "incremental"}


def planned(name: str, **values: object) -> QueryPlan:
    return plan_query(captured_model(name), GRID, settings=settings_of(WHOLE | values))


def kernels_of(plan: QueryPlan) -> set[str]:
    assert plan.tensor is not None
    assert all(node.mode in ("full", "once") for node in plan.tensor.graph)
    return {node.kernel for node in plan.tensor.graph if node.kernel}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_whole_plans_are_exact(name: str, batch: int | None) -> None:
    logits = run_plan(planned(name, batch=batch), captured_model(name), *image_and_fill())
    Oracle(model(name), *image_and_fill(), GRID).judge(logits)


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_whole_plans_name_their_kernels() -> None:
    assert kernels_of(planned("gated")) == {"direct", "deferred"}
    assert {"direct", "depthwise"} <= kernels_of(planned("mobile"))
    assert kernels_of(planned("residual", disabled_rules="incremental,fuse_activation")) >= {"direct", "native"}


@pytest.mark.parametrize("name", ["gated", "mobile", "residual"])
@pytest.mark.parametrize("way", ["reference", "rule off", "no compiler"])
def test_without_kernels_pytorch_gives_the_same_answers(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no compiler":
        monkeypatch.setenv("KRYPTON_NO_COMPILER", "1")
        native.library.cache_clear()
    try:
        values = {"reference": {"kernels": "reference"}, "rule off": {"disabled_rules": "incremental,choose_kernel"}}
        plan = planned(name, **values.get(way, {}))
        assert kernels_of(plan) == set()
        logits = run_plan(plan, captured_model(name), *image_and_fill())
    finally:
        native.library.cache_clear()
    Oracle(model(name), *image_and_fill(), GRID).judge(logits)


@pytest.mark.parametrize("disabled", ["", "defer_gate"])
@pytest.mark.parametrize("readers", [1, 2])
def test_gates_with_one_reader_or_more_are_exact(readers: int, disabled: str) -> None:
    steps = [Step("conv", (0,), {"out": 6, "kernel": 3, "padding": 1}), Step("gate", (1,))]
    steps += [Step("conv", (2,), {"out": 5, "kernel": 1}) for _ in range(readers)]
    steps += [Step("add", (3, 2 + readers)), Step("mean_head", (3 + readers,), {"out": 3})]
    plan = check_exact(
        SpecNet((3, 19, 16), steps), *image_and_fill(), GRID, {"disabled_rules": f"full_when_cheaper,{disabled}"}
    )
    assert plan.tensor is not None
    deferred = any(node.kernel == "deferred" for node in plan.tensor.graph if node.op == "gate")
    assert deferred == (readers == 1 and not disabled and native.library() is not None)


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
def test_kernels_outlive_the_search_for_their_library() -> None:
    """What was prepared before the compiled kernels are looked for anew runs as it did, gates left to their reader included."""
    plan = planned("gated")
    assert "deferred" in kernels_of(plan)
    first = run_plan(plan, captured_model("gated"), *image_and_fill())
    native.library.cache_clear()
    assert torch.equal(first, run_plan(plan, captured_model("gated"), *image_and_fill()))
