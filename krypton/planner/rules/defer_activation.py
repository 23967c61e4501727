"""defer_activation: a scale and activation that only one 1×1 convolution reads is computed as that convolution reads its input.

In DenseNet batch norm and ReLU stand before every 1×1 convolution, on hundreds of channels of a block's buffer: writing them
down and reading them again costs as much as a sixth of all arithmetic.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.kernels import DEFERRED, find
from krypton.planner.rules.base import Context, map_nodes, tensor_plan


def defer_activation(plan: QueryPlan, context: Context) -> QueryPlan:
    """Defer what can be."""
    graph = tensor_plan(plan).graph
    consumers = graph.consumers()

    def change(node: Node) -> Node:
        readers = consumers[node.id]
        able = node.id != graph.output and len(readers) == 1 and _is_single(node) and _begins(readers[0], node.id)
        return replace(node, kernel=DEFERRED) if able else node

    return map_nodes(plan, change)


def _is_single(node: Node) -> bool:
    """A function of one scaled input, that a compiled kernel would run?"""
    if node.op != "combine" or node.mode != "delta" or node.kernel != "native" or node.function is None:
        return False
    return len(node.inputs) == 1 and node.epilogue is not None and len(node.epilogue.terms) == 1


def _begins(reader: Node, source: int) -> bool:
    """A 1×1 convolution of this value (which its epilogue does not read) whose kernel can begin with a function?"""
    if reader.op != "conv" or reader.mode != "delta" or reader.inputs[0] != source or source in reader.inputs[1:]:
        return False
    pointwise = tuple(reader.attrs["kernel"]) == (1, 1) and not any(reader.attrs["padding"])
    return pointwise and find("conv", reader.kernel.split("+")[0]).begins
