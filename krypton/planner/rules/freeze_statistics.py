"""freeze_statistics: what layers know of the whole map keeps the value that it has on the unmodified image.

The gate of a squeeze-and-excitation block and the mean and variance of a group norm look at the whole map, so that every
occlusion changes every pixel behind them, and increments end at the first one. With these as they were, changes stay where they
are, and increments go on. Asked for by `WITH (freeze => TRUE)`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from krypton.ir.graph import Graph
from krypton.ir.plan import QueryPlan
from krypton.planner.norms import split
from krypton.planner.rules.base import Context, tensor_plan, with_graph
from krypton.planner.rules.fuse_activation import fuse_activation
from krypton.planner.rules.incremental import incremental


def freeze_statistics(plan: QueryPlan, context: Context) -> QueryPlan:
    """Freeze whatever serves gates and norms alone, as far as increments come; nothing unless it is asked for."""
    if plan.approximation is None or not plan.approximation.freeze:
        return plan
    norms = {node.id for node in tensor_plan(plan).graph if node.op == "group_norm"}
    graph = _frozen(plan, norms, context)
    within_reach = {node.id for node in graph if node.id in norms and node.mode == "delta"}
    if within_reach < norms:
        graph = _frozen(plan, within_reach, context)
    gates = sum(node.op == "gate" and node.mode == "delta" for node in graph) - len(within_reach)
    notes = [f"squeeze-and-excitation gates that are frozen: {gates}"] if gates else []
    notes += [f"group norms whose mean and variance are frozen: {len(within_reach)}"] if within_reach else []
    nothing = "freeze does nothing: there are no gates or group norms within reach"
    frozen = replace(with_graph(plan, graph), notes=(*plan.notes, *(notes or [nothing])))
    fused = within_reach and "fuse_activation" not in context.settings["disabled_rules"]  # norms with what follows them
    return fuse_activation(frozen, context) if fused else frozen


def _frozen(plan: QueryPlan, norms: Collection[int], context: Context) -> Graph:
    graph = split(tensor_plan(plan).graph, norms)
    serving = _serving(graph)
    frozen = graph.with_nodes(replace(n, mode="frozen") if n.id in serving else n for n in graph)
    changed = incremental(with_graph(plan, frozen), context)
    return thawed(tensor_plan(changed).graph)


def thawed(graph: Graph) -> Graph:
    """The graph with nothing frozen that whole values are made of after all: there increments have ended before."""
    consumers, found = graph.consumers(), set[int]()
    for node in reversed(graph.nodes):
        if node.mode == "frozen" and any(reader.mode == "full" or reader.id in found for reader in consumers[node.id]):
            found.add(node.id)
    return graph.with_nodes(replace(node, mode="full") if node.id in found else node for node in graph)


def _serving(graph: Graph) -> set[int]:
    """The nodes that nothing reads but gates, as the gate itself, and each other; and the shifts of norms."""
    found: set[int] = set()
    consumers = graph.consumers()
    for node in reversed(graph.nodes):
        readers = consumers[node.id]
        serves = [c.id in found or (c.op == "gate" and c.inputs[1] == node.id != c.inputs[0]) for c in readers]
        alone = node.id != graph.output and node.op != "image" and node.mode != "once" and serves and all(serves)
        if alone or node.op == "group_shift":
            found.add(node.id)
    return found
