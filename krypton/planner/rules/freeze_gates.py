"""freeze_gates: the gates of squeeze-and-excitation blocks keep the values that they have on the unmodified image.

A gate looks at the whole map, so that every occlusion changes every pixel behind it, and increments end at the first one. With
the gate as it was, changes stay where they are, and increments go on. Asked for by `WITH (freeze => TRUE)`.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Graph
from krypton.ir.plan import QueryPlan
from krypton.planner.rules.base import Context, map_nodes, tensor_plan, with_graph
from krypton.planner.rules.incremental import incremental


def freeze_gates(plan: QueryPlan, context: Context) -> QueryPlan:
    """Freeze whatever serves gates alone, as far as increments come; nothing unless it is asked for."""
    if plan.approximation is None or not plan.approximation.freeze:
        return plan
    frozen = serving_gates(tensor_plan(plan).graph)
    changed = map_nodes(plan, lambda node: replace(node, mode="frozen") if node.id in frozen else node)
    graph = thawed(tensor_plan(incremental(changed, context)).graph)
    gates = sum(node.op == "gate" and node.mode == "delta" for node in graph)
    nothing = "freeze does nothing: there are no gates within reach"
    note = f"squeeze-and-excitation gates that are frozen: {gates}" if gates else nothing
    return replace(with_graph(plan, graph), notes=(*plan.notes, note))


def thawed(graph: Graph) -> Graph:
    """The graph with nothing frozen that whole values are made of after all: there increments have ended before."""
    consumers, found = graph.consumers(), set[int]()
    for node in reversed(graph.nodes):
        if node.mode == "frozen" and any(reader.mode == "full" or reader.id in found for reader in consumers[node.id]):
            found.add(node.id)
    return graph.with_nodes(replace(node, mode="full") if node.id in found else node for node in graph)


def serving_gates(graph: Graph) -> set[int]:
    """The nodes that nothing reads but gates, as the gate itself, and each other."""
    found: set[int] = set()
    consumers = graph.consumers()
    for node in reversed(graph.nodes):
        readers = consumers[node.id]
        serves = [c.id in found or (c.op == "gate" and c.inputs[1] == node.id != c.inputs[0]) for c in readers]
        if node.id != graph.output and node.op != "image" and node.mode != "once" and serves and all(serves):
            found.add(node.id)
    return found
