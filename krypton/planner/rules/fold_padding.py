"""fold_padding: zero padding before a convolution becomes the convolution's own."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def fold_padding(plan: QueryPlan, context: Context) -> QueryPlan:
    """Fold zero-valued, non-negative padding into the convolutions that read it."""
    graph = tensor_plan(plan).graph
    nodes = graph.index()

    def fold(node: Node) -> Node:
        source = nodes.get(node.inputs[0]) if node.op == "conv" else None
        if source is None or source.op != "pad" or source.attrs.get("value", 0.0) != 0 or min(source.attrs["padding"]) < 0:
            return node
        padding = [a + b for a, b in zip(node.attrs["padding"], source.attrs["padding"], strict=True)]
        return replace(node, inputs=(source.inputs[0], *node.inputs[1:]), attrs={**node.attrs, "padding": padding})

    return with_graph(plan, graph.with_nodes(fold(node) for node in graph).without_dead())
