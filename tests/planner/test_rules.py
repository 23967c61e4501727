"""Rules: plans before and after each as text, both executed and compared; switches, provenance and the trace."""

from __future__ import annotations

import dataclasses
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from support.judge import Oracle, run_plan, settings_of
from support.small import GRID, MODELS, captured_model, image_and_fill, model

from krypton.errors import PlanError
from krypton.executor import execute
from krypton.ir.graph import Graph
from krypton.ir.plan import Approximation, QueryPlan, TensorPlan
from krypton.ir.verify import verify_plan
from krypton.kernels import DEFERRED
from krypton.planner import optimizer
from krypton.planner.explain import explain
from krypton.planner.rules import RULES, Context, Rule, register_rule
from krypton.planner.rules.base import map_nodes, tensor_plan
from krypton.planner.rules.full_when_cheaper import with_deferred
from krypton.planner.tiles import single_tiling

GOLDEN = Path(__file__).parent / "golden"
NAMES = [rule.name for rule in RULES]

# the model whose plan shows best what a rule does
SHOWN = {
    "drop_identity": "plain",
    "fold_padding": "plain",
    "fold_batch_norm": "residual",
    "fuse_activation": "residual",
    "incremental": "dense",
    "pool_first": "dense",
    "defer_activation": "dense",
    "project_when_opaque": "gated",
    "full_when_cheaper": "residual",
    "defer_gate": "gated",
    "freeze_statistics": "gated",
    "factor_gate": "normalised",
    "fold_shift": "normalised",
    "chain_depthwise": "mobile",
    "projective_threshold": "residual",
    "energy_cut": "residual",
}

APPROXIMATE = {
    "projective_threshold": Approximation(tau=0.5),
    "energy_cut": Approximation(keep=0.9),
    "freeze_statistics": Approximation(freeze=True),
}
"""What the query must ask for, so that a rule does anything; these change the answer."""


@cache
def oracle(name: str) -> Oracle:
    return Oracle(model(name), *image_and_fill(), GRID)


def judged(name: str, plan: QueryPlan) -> torch.Tensor:
    """The logits of a plan, found exact."""
    verify_plan(plan)
    logits = run_plan(plan, captured_model(name), *image_and_fill())
    oracle(name).judge(logits)
    return logits


def before_and_after(name: str, rule: str) -> tuple[QueryPlan, QueryPlan]:
    """The plan as the rules before it leave it, and what the rule makes of that; both legal."""
    captured, context = captured_model(name), Context(settings_of())
    tensor = TensorPlan(optimizer._with_once(captured.graph), tiling=single_tiling(GRID))
    asked = APPROXIMATE.get(rule)
    plan = QueryPlan("exact", GRID, model=name, input_shape=captured.input_shape, tensor=tensor, approximation=asked)
    for other in RULES:
        # on maps as small as these whole ones are always cheaper, and no increments would be left to look at
        if other.name == "full_when_cheaper" != rule:
            continue
        after = optimizer._run(other, plan, context, skip=False)
        if other.name == rule:
            return optimizer._legal(plan), optimizer._legal(after)
        plan = after
    raise AssertionError(rule)


def text(plan: QueryPlan) -> str:
    """The operators of a plan, and what surrounds them."""
    tensor = plan.tensor
    assert tensor is not None
    views = "all" if tensor.views is None else ", ".join(f"%{node} {kind}" for node, kind in tensor.views)
    rows = ", ".join(f"{r.start}:{r.stop}" for r in tensor.tiling.rows)
    columns = ", ".join(f"{c.start}:{c.stop}" for c in tensor.tiling.columns)
    shown = [line.rstrip() for line in explain(plan, costs=False, verbose=True).splitlines()]
    return "\n".join([*shown, f"views kept: {views}", f"tiles: rows {rows}; columns {columns}"])


@pytest.mark.parametrize("rule", NAMES)
def test_a_rule_does_what_its_golden_text_shows(rule: str) -> None:
    """KRYPTON_REGENERATE=1 writes the texts anew: read the difference before you commit it."""
    before, after = before_and_after(SHOWN.get(rule, "inception"), rule)
    found = f"-- before {rule}\n{text(before)}\n\n-- after {rule}\n{text(after)}\n"
    file = GOLDEN / f"{rule}.txt"
    if os.environ.get("KRYPTON_REGENERATE"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(found)
    assert found == file.read_text(), f"the plan differs from {file}"


@pytest.mark.parametrize("rule", [name for name in NAMES if name not in APPROXIMATE])
def test_both_sides_of_a_rule_give_the_same_answer(rule: str) -> None:
    name = SHOWN.get(rule, "inception")
    before, after = before_and_after(name, rule)
    judged(name, before)
    judged(name, after)


@pytest.mark.parametrize("name", ["residual", "dense", "inception", "mobile", "layered"])
@pytest.mark.parametrize("approximation", [Approximation(tau=0.8, quality_share=0.1), Approximation(keep=0.999)], ids=str)
def test_approximate_rules_cost_arithmetic_and_little_quality(name: str, approximation: Approximation) -> None:
    """Exact where they say so, near everywhere, and exact again when the rule is disabled."""
    for disabled, exact in (("full_when_cheaper", False), (",".join(["full_when_cheaper", *APPROXIMATE]), True)):
        settings = settings_of({"disabled_rules": disabled})
        plan = optimizer.plan_query(
            captured_model(name), GRID, mode="approximate", approximation=approximation, settings=settings
        )
        batches = list(execute(plan, *image_and_fill(), weights=captured_model(name).weights, settings=settings))
        logits, sound = torch.zeros(GRID.count, 5), torch.zeros(GRID.count, dtype=torch.bool)
        for batch in batches:
            logits[batch.indices], sound[batch.indices] = batch.logits, torch.tensor(batch.exact)
        error = (logits - oracle(name).reference).abs()
        assert (error[sound] <= oracle(name).allowed).all()
        assert sound.any()
        assert bool(sound.all()) == (exact or approximation.keep is not None)  # that measures all of so small a grid
        change = (oracle(name).reference - oracle(name).base).square().mean().sqrt()
        rough = torch.cat([b.logits - oracle(name).reference[b.indices] for b in batches if not b.exact] or [torch.zeros(1)])
        assert bool(rough.any()) != exact
        assert rough.square().mean().sqrt() < 0.3 * change


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("disabled", ["", *NAMES, ",".join(NAMES)], ids=["none", *NAMES, "all"])
def test_answers_stay_the_same_without_a_rule(name: str, disabled: str) -> None:
    for others in ("", ",full_when_cheaper"):
        settings = settings_of({"disabled_rules": disabled + others})
        plan = optimizer.plan_query(captured_model(name), GRID, settings=settings)
        judged(name, plan)
        skipped = {report.name for report in plan.trace if report.skipped}
        assert skipped == {word for word in (disabled + others).split(",") if word}
        assert plan.tensor is not None
        assert not skipped & {rule for node in plan.tensor.graph for rule in node.rules}


def test_the_trace_tells_every_rule_in_order() -> None:
    plan = optimizer.plan_query(captured_model("residual"), GRID, settings=settings_of({"disabled_rules": "share_views"}))
    assert [report.name for report in plan.trace] == NAMES
    reports = {report.name: report for report in plan.trace}
    assert reports["share_views"].skipped
    assert reports["share_views"].changed == 0
    assert reports["fold_batch_norm"].changed > 0
    assert all(report.milliseconds > 0 for report in plan.trace if not report.skipped)


def test_nodes_name_the_rules_that_made_them_what_they_are() -> None:
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    plan = optimizer.plan_query(captured_model("residual"), GRID, settings=settings)
    assert plan.tensor is not None
    nodes = list(plan.tensor.graph)
    assert nodes[0].rules == ("incremental",)
    fused = [node for node in nodes if node.op == "conv" and node.function]
    assert fused
    for node in fused:
        assert {"fuse_activation", "incremental", "choose_kernel"} <= set(node.rules)
    assert any("fold_batch_norm" in node.rules for node in nodes)
    assert [node.rules for node in nodes if node.op == "linear"] == [()]


def test_plans_with_opaque_operators_say_where_increments_end() -> None:
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    plan = optimizer.plan_query(captured_model("gated"), GRID, settings=settings)
    assert any("increments end" in note and "gate" in note for note in plan.notes)
    without = optimizer.plan_query(
        captured_model("gated"), GRID, settings=settings_of({"disabled_rules": "project_when_opaque,full_when_cheaper"})
    )
    assert any("without project_when_opaque" in note for note in without.notes)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_setting_bounds_tiles_and_the_head(batch: int) -> None:
    for name in ("residual", "gated"):
        settings = settings_of({"batch": batch, "disabled_rules": "full_when_cheaper"})
        plan = optimizer.plan_query(captured_model(name), GRID, settings=settings)
        assert plan.tensor is not None
        assert max(len(tile.indices) for tile in plan.tensor.tiling.tiles(GRID)) <= batch
        assert plan.tensor.head_batch <= batch
        judged(name, plan)


def test_a_rule_of_ones_own_runs_behind_the_one_it_names() -> None:
    def renamed(plan: QueryPlan, context: Context) -> QueryPlan:
        return map_nodes(plan, lambda node: dataclasses.replace(node, module="mine"))

    before = list(RULES)
    try:
        register_rule(Rule("rename", renamed, "every node is mine"), after="incremental")
        assert [rule.name for rule in RULES].index("rename") == NAMES.index("incremental") + 1
        plan = optimizer.plan_query(captured_model("residual"), GRID, settings=settings_of())
        assert plan.tensor is not None
        assert "rename" in plan.tensor.graph.image.rules
        judged("residual", plan)
        with pytest.raises(PlanError, match=r'unknown rule "incremetal".*incremental'):
            register_rule(Rule("other", renamed, ""), after="incremetal")
    finally:
        RULES[:] = before


def test_a_rule_that_breaks_the_graph_is_caught_at_once() -> None:
    def broken(plan: QueryPlan, context: Context) -> QueryPlan:
        assert plan.tensor is not None
        graph = plan.tensor.graph
        return dataclasses.replace(plan, tensor=dataclasses.replace(plan.tensor, graph=graph.with_nodes(graph.nodes[:1])))

    before = list(RULES)
    try:
        register_rule(Rule("broken", broken, "loses everything"), after="incremental")
        with pytest.raises(PlanError, match="not in the graph"):
            optimizer.plan_query(captured_model("residual"), GRID, settings=settings_of())
    finally:
        RULES[:] = before


def test_increments_are_priced_with_the_activations_that_will_be_deferred() -> None:
    captured, context = captured_model("dense"), Context(settings_of())
    plan, _ = before_and_after("dense", "full_when_cheaper")
    final = optimizer.plan_query(captured, GRID, settings=settings_of({"disabled_rules": "full_when_cheaper"}))
    before, wanted = tensor_plan(plan).graph, tensor_plan(final).graph
    assert not _deferred(before)
    assert _deferred(with_deferred(before, context)) == _deferred(wanted)
    assert _deferred(wanted)
    without = Context(settings_of({"disabled_rules": "defer_activation"}))
    assert with_deferred(before, without) == before


def _deferred(graph: Graph) -> set[int]:
    return {node.id for node in graph if node.kernel == DEFERRED}
