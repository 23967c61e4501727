"""defer_activation: a scale and activation that only one 1×1 convolution reads is computed as that convolution reads its input.

In DenseNet batch norm and ReLU stand before every 1×1 convolution, on hundreds of channels of a block's buffer: writing them
down and reading them again costs as much as a sixth of all arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import QueryPlan
from krypton.kernels import DEFERRED, find
from krypton.planner.rules.base import Context, map_nodes, tensor_plan


def defer_activation(plan: QueryPlan, context: Context) -> QueryPlan:
    """Defer what can be."""
    able = deferrable(tensor_plan(plan).graph, lambda node: [node.own_kernel])
    return map_nodes(plan, lambda node: replace(node, kernel=DEFERRED) if node.id in able else node)


def deferrable(graph: Graph, kernels: Callable[[Node], Collection[str]]) -> set[int]:
    """The activations that their only reader can compute, by the names of the kernels that a node has, or may get."""
    consumers = graph.consumers()
    return {
        node.id
        for node in graph
        if node.id != graph.output
        and len(consumers[node.id]) == 1
        and _is_single(node)
        and "native" in kernels(node)
        and reads_first(consumers[node.id][0], node.id, kernels)
    }


def _is_single(node: Node) -> bool:
    """A function of one scaled input?"""
    if node.op != "combine" or node.mode != "delta" or node.function is None:
        return False
    return len(node.inputs) == 1 and node.epilogue is not None and len(node.epilogue.terms) == 1


def reads_first(reader: Node, source: int, kernels: Callable[[Node], Collection[str]]) -> bool:
    """A 1×1 convolution of this value (which its epilogue does not read) with a kernel that can begin with a function?"""
    if reader.op != "conv" or reader.mode != "delta" or reader.inputs[0] != source or source in reader.inputs[1:]:
        return False
    pointwise = tuple(reader.attrs["kernel"]) == (1, 1) and not any(reader.attrs["padding"])
    return pointwise and any(name and find("conv", name).begins for name in kernels(reader))
