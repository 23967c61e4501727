"""full_when_cheaper: from where fields have grown so far that whole maps cost less, increments end.

Ends are sought where all paths meet (the dominators of the output), for one projection is enough there. The image is one of
them: then the whole plan is full inference.
"""

from __future__ import annotations

from dataclasses import replace

import networkx as nx

from krypton.ir.graph import Graph
from krypton.ir.plan import QueryPlan
from krypton.planner.cost import Pricing, plan_costs, whole_box
from krypton.planner.fields import Fields
from krypton.planner.rules.base import Context, tensor_plan, with_graph
from krypton.planner.rules.project_when_opaque import insert_projections
from krypton.planner.tiles import even_tiling, sample

GAIN = 0.98  # a projection must promise at least this much of the cost without it
BATCH = 32


def full_when_cheaper(plan: QueryPlan, context: Context) -> QueryPlan:
    """End increments at the dominator where that is cheapest, if anywhere."""
    graph = tensor_plan(plan).graph
    if graph.image.mode != "delta":
        return plan
    tiles = sample(even_tiling(plan.occlusions).tiles(plan.occlusions), 9)
    delta = plan_costs(graph, Fields(graph), tiles, BATCH, context.profile, context.device)
    full = {
        n.id: Pricing(replace(n, mode="full"), context.profile, context.device).cost(whole_box(n), BATCH).milliseconds
        for n in graph
    }
    best, cut = sum(cost.milliseconds for cost in delta.values()) * GAIN, None
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
        node if node.id in before or node.mode == "once" else replace(node, mode="full") for node in plain
    )
    return insert_projections(changed)


def _dominators(graph: Graph) -> list[int]:
    """Nodes through which every path from the image to the output goes, the nearest to the image first."""
    above = nx.immediate_dominators(graph.networkx(), graph.image.id)
    chain, node = [], graph.output
    while node is not None and node != graph.image.id:
        node = above.get(node)
        if node is not None:
            chain.append(node)
    return chain[::-1]
