"""incremental: operators with a delta rule compute changes instead of whole maps (incremental view maintenance)."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Mode
from krypton.ir.plan import QueryPlan
from krypton.operators.base import operator_of
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def incremental(plan: QueryPlan, context: Context) -> QueryPlan:
    """Set the mode of every node whose inputs are deltas, or do not depend on the image, to delta."""
    graph = tensor_plan(plan).graph
    modes: dict[int, Mode] = {}
    nodes = []
    for node in graph:
        if node.op == "image":
            modes[node.id] = "delta"
        else:
            inputs = [modes[source] for source in node.inputs]
            changed = [mode == "delta" for mode in inputs]
            able = any(changed) and all(mode in ("delta", "once", "frozen") for mode in inputs) and node.mode != "frozen"
            operator = operator_of(node)
            modes[node.id] = operator.result_mode(node) if able and operator.incremental(node, changed) else node.mode
        nodes.append(node if node.mode == modes[node.id] else replace(node, mode=modes[node.id]))
    return with_graph(plan, graph.with_nodes(nodes))
