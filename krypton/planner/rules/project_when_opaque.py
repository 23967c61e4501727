"""project_when_opaque: where an operator without a delta rule reads a delta, the delta becomes a whole map first.

Without this rule a plan that meets such an operator has no increments at all.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import QueryPlan
from krypton.operators.base import operator_of
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def project_when_opaque(plan: QueryPlan, context: Context) -> QueryPlan:
    """Insert the projections, and note where increments end and why."""
    graph = tensor_plan(plan).graph
    nodes = graph.index()
    ends: dict[str, str] = {}
    for node in graph:
        if node.mode == "full" and node.op != "flatten" and any(nodes[s].mode == "delta" for s in node.inputs):
            place = f" at {node.module}" if node.module else ""
            ends.setdefault(node.op, f"increments end before {operator_of(node).label(node)}{place}: it has no delta rule here")
    result = with_graph(plan, insert_projections(graph))
    return replace(result, notes=(*plan.notes, *ends.values()))


def insert_projections(graph: Graph) -> Graph:
    """One projection for every delta that nodes in mode full read."""
    modes = {node.id: node.mode for node in graph}
    fresh = max(modes) + 1
    projections: dict[int, int] = {}
    nodes: list[Node] = []
    for node in graph:
        if node.mode == "full":
            inputs = []
            for source in node.inputs:
                if modes[source] == "delta":
                    if source not in projections:
                        shape = graph.index()[source].shape
                        nodes.append(Node(fresh, "project", (source,), shape, mode="project"))
                        projections[source] = fresh
                        fresh += 1
                    source = projections[source]
                inputs.append(source)
            node = node if tuple(inputs) == node.inputs else replace(node, inputs=tuple(inputs))
        nodes.append(node)
    return graph.with_nodes(nodes)
