"""full_when_cheaper: from where fields have grown so far that whole maps cost less, increments end.

Ends are sought where all paths meet (the dominators of the output), for one projection is enough there. The image is one of
them: then the whole plan is full inference. With a tolerance, increments are priced in the low precision that it is thought to
allow; whole maps are always in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import networkx as nx

from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan
from krypton.kernels import DEFERRED, able
from krypton.planner.cost import Pricing, plan_costs, sizes, usually_kept, whole_box
from krypton.planner.fields import Fields
from krypton.planner.norms import joined
from krypton.planner.precision import WHOLE_BATCH, choices, propose, sensitivity_of, with_kernels
from krypton.planner.rules.base import Context, tensor_plan, with_graph
from krypton.planner.rules.choose_kernel import rank
from krypton.planner.rules.defer_activation import deferrable
from krypton.planner.rules.defer_gate import deferrable_deltas
from krypton.planner.rules.project_when_opaque import insert_projections
from krypton.planner.tiles import even_tiling, sample

GAIN = 0.98  # a projection must promise at least this much of the cost without it


def full_when_cheaper(plan: QueryPlan, context: Context) -> QueryPlan:
    """End increments at the dominator where that is cheapest, if anywhere."""
    graph = tensor_plan(plan).graph
    if graph.image.mode != "delta":
        return plan
    tiles = sample(even_tiling(plan.occlusions).tiles(plan.occlusions), 9)
    priced = _in_low_precision(graph, tiles, context) if context.settings["tolerance"] else graph
    priced = with_deferred(priced, context)
    delta = plan_costs(priced, Fields(graph), tiles, WHOLE_BATCH, context.profile, context.device)
    full = {
        n.id: Pricing(replace(n, mode="full"), context.profile, context.device).cost(whole_box(n), WHOLE_BATCH).milliseconds
        for n in graph
    }
    gain = GAIN * usually_kept(1.0 if plan.approximation is None else plan.approximation.keep or 1.0)
    best, cut = sum(cost.milliseconds for cost in delta.values()) * gain, None
    nodes, view = graph.index(), graph.networkx()
    for candidate in _dominators(graph):
        node = nodes[candidate]
        if node.mode != "delta":
            continue
        before = nx.ancestors(view, candidate) | {candidate}
        moved = whole_box(node).area * node.shape[0] * 8 / context.profile.bytes_per_ms  # the projection itself
        cost = sum(delta[n].milliseconds for n in before) if candidate != graph.image.id else 0.0
        cost += moved + sum(full[n.id] for n in graph if n.id not in before and n.op != "project")
        if cost < best:
            best, cut = cost, candidate
    if cut is None:
        return plan
    place = nodes[cut].module or nodes[cut].op
    note = (
        "full inference is cheaper than increments here" if cut == graph.image.id else f"whole maps are cheaper after {place}"
    )
    return replace(with_graph(plan, end_increments(graph, cut)), notes=(*plan.notes, note))


def end_increments(graph: Graph, after: int) -> Graph:
    """The graph with everything behind one node (all paths meet there) in mode full."""
    if after == graph.image.id:
        before: set[int] = set()
    else:
        before = nx.ancestors(graph.networkx(), after) | {after}
    through = {node.id: node.inputs[0] for node in graph if node.op == "project"}
    plain = graph.substitute(through)
    changed = plain.with_nodes(
        node if node.id in before or node.mode == "once" else replace(node, mode="full", cuts=()) for node in plain
    )
    return insert_projections(joined(changed))


def _in_low_precision(graph: Graph, tiles: Sequence[OcclusionTile], context: Context) -> Graph:
    """The graph with the kernels that are to be proposed for the tolerance, were all of it incremental."""
    fields = Fields(graph)
    convolutions = [node for node in graph if node.op == "conv" and node.mode == "delta"]
    alternatives = {n.id: tuple(rank(n, sizes(fields, n, tiles), context, exact=False)) for n in convolutions}
    options = choices(graph, alternatives)
    sensitivity = sensitivity_of(graph, options, context.sensitivities)
    return with_kernels(graph, propose(options, sensitivity, context.settings["tolerance"]))


def with_deferred(graph: Graph, context: Context) -> Graph:
    """The graph with those activations and gates deferred that later rules will defer: increments are the cheaper for it."""
    disabled = context.settings["disabled_rules"]
    if "choose_kernel" in disabled or "reference" in context.settings["kernels"]:
        return graph

    def kernels(node: Node) -> list[str]:
        return [kernel.name for kernel in able(node.op, node, context.device)]

    found = set() if "defer_activation" in disabled else deferrable(graph, kernels)
    found |= set() if "defer_gate" in disabled else deferrable_deltas(graph, kernels)
    return graph.with_nodes(replace(node, kernel=DEFERRED) if node.id in found else node for node in graph)


def _dominators(graph: Graph) -> list[int]:
    """Nodes through which every path from the image to the output goes, the nearest to the image first."""
    above = nx.immediate_dominators(graph.networkx(), graph.image.id)
    chain, node = [], graph.output
    while node is not None and node != graph.image.id:
        node = above.get(node)
        if node is not None:
            chain.append(node)
    return chain[::-1]
