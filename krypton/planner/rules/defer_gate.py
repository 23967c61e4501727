"""defer_gate: a gated map that only one 1×1 convolution reads is multiplied as that convolution reads its input.

In squeeze-and-excitation networks the gate stands before the convolution that makes the many channels of a block few again:
multiplying the largest maps there are would be a pass of its own over memory. So it is for changes behind frozen gates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import QueryPlan
from krypton.kernels import DEFERRED
from krypton.kernels.whole import whole_kernel
from krypton.planner.rules.base import Context, map_nodes, tensor_plan
from krypton.planner.rules.defer_activation import reads_first


def defer_gate(plan: QueryPlan, context: Context) -> QueryPlan:
    """Defer what can be."""
    graph = tensor_plan(plan).graph
    able = deferrable(graph) | deferrable_deltas(graph, lambda node: [node.own_kernel])
    return map_nodes(plan, lambda node: replace(node, kernel=DEFERRED) if node.id in able else node)


def deferrable(graph: Graph) -> set[int]:
    """The gated maps whose only reader can multiply."""
    consumers = graph.consumers()
    gates = [node for node in graph if node.op == "gate" and node.mode == "full" and node.id != graph.output]
    return {node.id for node in gates if len(consumers[node.id]) == 1 and _begins(consumers[node.id][0], node.id)}


def deferrable_deltas(graph: Graph, kernels: Callable[[Node], Collection[str]]) -> set[int]:
    """The same of changes, behind frozen gates, by the names of the kernels that a convolution has, or may get."""
    consumers = graph.consumers()
    gates = [node for node in graph if node.op == "gate" and node.mode == "delta"]
    return {node.id for node in gates if len(consumers[node.id]) == 1 and reads_first(consumers[node.id][0], node.id, kernels)}


def _begins(reader: Node, source: int) -> bool:
    """A 1×1 convolution of this value (which its epilogue does not read) whose kernel can begin with a product?"""
    if reader.op != "conv" or reader.inputs[0] != source or source in reader.inputs[1:]:
        return False
    kernel = whole_kernel(reader)
    return kernel is not None and kernel.begins and tuple(reader.attrs["kernel"]) == (1, 1) and not any(reader.attrs["padding"])
