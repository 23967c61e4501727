"""The way in: `plan_query` lowers a query to its plainest plan and lets the rules improve it.

All rules run through one function, which can leave them out, times them, checks the result and records what they touched.
Lowering steps that any answer needs are not rules: the plainest plan is complete, and `_legal` mends what a missing rule left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from krypton.errors import PlanError
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import Occlusions
from krypton.ir.plan import Approximation, Cost, QueryPlan, RuleReport, TensorPlan
from krypton.ir.verify import verify_graph, verify_plan
from krypton.ir.weights import Reference
from krypton.planner.capture import CapturedModel
from krypton.planner.cost import DeviceProfile, plan_costs
from krypton.planner.fields import Fields
from krypton.planner.precision import in_low_precision
from krypton.planner.rules import RULES, Context, Rule
from krypton.planner.rules.base import tensor_plan
from krypton.planner.rules.energy_cut import UNCUT
from krypton.planner.stages import plan_stages, with_tilings
from krypton.planner.tiles import sample, single_tiling
from krypton.settings import Settings

NAIVE_BATCH = 32
COST_SAMPLE = 60


def plan_query(
    captured: CapturedModel | None,
    occlusions: Occlusions,
    *,
    mode: Literal["exact", "naive", "approximate"] = "exact",
    approximation: Approximation | None = None,
    device: str = "cpu",
    model: str = "",
    settings: Settings | None = None,
    reason: str = "",
    profile: DeviceProfile | None = None,
    sensitivities: Mapping[Reference, float] | None = None,
) -> QueryPlan:
    """The plan of a query. Without a captured model the model itself is run, `reason` says why in the notes.

    `approximation` is for mode approximate. `sensitivities` are what earlier queries measured of the model's layers, by their
    weights, for a tolerance. Raises BindError where its drill-down does not fit the occlusions.
    """
    settings = settings or Settings()
    if (mode == "approximate") != (approximation is not None):
        raise PlanError("mode approximate, and no other, needs to know what may be left out")
    batch = min(settings["batch"] or NAIVE_BATCH, occlusions.count)
    naive = QueryPlan("naive", occlusions, device, model, batch=batch, notes=(reason,) if reason else ())
    if captured is not None:
        naive = replace(naive, input_shape=captured.input_shape)
    if captured is None or mode == "naive":
        return naive if approximation is None else _in_stages(naive, approximation, exact=True)
    context = Context(settings, profile or DeviceProfile(), torch.device(device), sensitivities or {})
    tensor = TensorPlan(_with_once(captured.graph), tiling=single_tiling(occlusions))
    plan = replace(naive, kind="exact", tensor=tensor, approximation=approximation)
    disabled = set(settings["disabled_rules"])
    for rule in RULES:
        plan = _run(rule, plan, context, rule.name in disabled)
    plan = _legal(plan)
    if approximation is not None:
        tensor = tensor_plan(plan)
        exact = not (tensor.cut or in_low_precision(tensor.graph))
        plan = _in_stages(plan, approximation, exact=exact, measure=tensor.keep < 1)
        plan = replace(plan, stages=with_tilings(plan.stages, tensor.graph, occlusions, context.profile, settings))
    verify_plan(plan)
    costs = _costs(plan, context)
    notes = (*plan.notes, *_saved(plan, context, costs))
    return replace(plan, tensor=replace(tensor_plan(plan), costs=costs), notes=notes)


def as_cut(plan: QueryPlan, tensor: TensorPlan, settings: Settings, profile: DeviceProfile) -> QueryPlan:
    """A plan that asks for an energy cut with the fields that a run cut, priced, and what that saves in the notes."""
    context = Context(settings, profile, torch.device(plan.device))
    cut = replace(plan, tensor=tensor, notes=tuple(note.removesuffix(UNCUT) for note in plan.notes))
    costs = _costs(cut, context)
    return replace(cut, tensor=replace(tensor, costs=costs), notes=(*cut.notes, *_saved(cut, context, costs)))


def _saved(plan: QueryPlan, context: Context, costs: Mapping[int, Cost]) -> list[str]:
    """What cutting fields saves, where any are cut."""
    cut = sum(bool(node.cuts) for node in tensor_plan(plan).graph)
    if not cut:
        return []
    whole = _costs(replace(plan, tensor=tensor_plan(plan).uncut()), context)
    before, after = (sum(cost.multiply_adds for cost in found.values()) for found in (whole, costs))
    return [f"the fields of {cut} operators are cut, which leaves {after / max(before, 1):.0%} of the arithmetic"]


def _in_stages(plan: QueryPlan, approximation: Approximation, *, exact: bool, measure: bool = False) -> QueryPlan:
    stages = plan_stages(plan.occlusions, approximation, exact=exact, measure=measure)
    return replace(plan, kind="approximate", approximation=approximation, stages=stages)


def _run(rule: Rule, plan: QueryPlan, context: Context, skip: bool) -> QueryPlan:
    if skip:
        return replace(plan, trace=(*plan.trace, RuleReport(rule.name, 0, 0.0, skipped=True)))
    started = time.perf_counter()
    before = tensor_plan(plan).graph
    changed = rule.apply(plan, context)
    graph, touched = _credit(rule.name, before, tensor_plan(changed).graph)
    verify_graph(graph)
    report = RuleReport(rule.name, touched, (time.perf_counter() - started) * 1e3)
    return replace(changed, tensor=replace(tensor_plan(changed), graph=graph), trace=(*plan.trace, report))


def _credit(rule: str, before: Graph, after: Graph) -> tuple[Graph, int]:
    """Write the rule's name on the nodes that it changed or made; how many those are, and how many are gone."""
    known = before.index()
    touched = 0
    nodes = []
    for node in after:
        old = known.get(node.id)
        # a node that merely reads its input under another name was not changed by the rule
        if old is None or replace(old, inputs=node.inputs) != node:
            touched += 1
            earlier = dict.fromkeys((*(old.rules if old else ()), *node.rules, rule))
            node = replace(node, rules=tuple(earlier))
        nodes.append(node)
    remaining = {node.id for node in after}
    return after.with_nodes(nodes), touched + sum(node.id not in remaining for node in before)


def _with_once(graph: Graph) -> Graph:
    """Mode once for whatever does not depend on the image."""
    once: set[int] = set()
    nodes: list[Node] = []
    for node in graph:
        constant = node.op == "constant" or (node.inputs and all(source in once for source in node.inputs))
        if constant:
            once.add(node.id)
            node = replace(node, mode="once")
        nodes.append(node)
    return graph.with_nodes(nodes)


def _legal(plan: QueryPlan) -> QueryPlan:
    """If whole values are still to be made from deltas (project_when_opaque was left out), nothing is incremental."""
    graph = tensor_plan(plan).graph
    modes = {node.id: node.mode for node in graph}
    partly = {"delta", "frozen"}
    broken = any(node.mode == "full" and any(modes[source] in partly for source in node.inputs) for node in graph)
    if not broken and modes[graph.output] != "delta":
        return plan
    notes = (*plan.notes, "without project_when_opaque, nothing is incremental")
    return replace(plan, tensor=replace(tensor_plan(plan), graph=graph.whole(), views=None), notes=notes)


def _costs(plan: QueryPlan, context: Context) -> dict[int, Cost]:
    tensor = tensor_plan(plan)
    tiles = sample(tensor.tiling.tiles(plan.occlusions), COST_SAMPLE)
    return dict(plan_costs(tensor.graph, Fields(tensor.graph), tiles, tensor.head_batch, context.profile, context.device))
