"""pool_first: an average pool that follows a 1×1 convolution goes before it, where the map is still to be made smaller.

Both are linear, and a pool acts on every channel alike: pool(W·x + b) = W·pool(x) + b, for the weights of a full
window sum to one.
The convolution then has as many times fewer pixels as the pool's strides say (DenseNet's transitions: four).
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def pool_first(plan: QueryPlan, context: Context) -> QueryPlan:
    """Exchange such pairs."""
    graph = tensor_plan(plan).graph
    nodes, consumers = graph.index(), graph.consumers()
    for pool in graph:
        convolution = nodes[pool.inputs[0]] if pool.op == "avg_pool" else None
        if convolution is None or convolution.op != "conv" or len(consumers[convolution.id]) > 1:
            continue
        if convolution.id == graph.output or not (_pointwise(convolution) and _whole_windows(pool)):
            continue
        channels = convolution.attrs["in_channels"]
        first = replace(pool, id=convolution.id, inputs=convolution.inputs, shape=(channels, *pool.shape[1:]))
        nodes[convolution.id] = first
        nodes[pool.id] = replace(convolution, id=pool.id, inputs=(convolution.id,), shape=pool.shape)
    return with_graph(plan, graph.with_nodes(nodes[node.id] for node in graph))


def _pointwise(node: Node) -> bool:
    a = node.attrs
    ones = tuple(a["kernel"]) == tuple(a["stride"]) == (1, 1)
    return ones and not any(a["padding"]) and a["groups"] == 1 and node.epilogue is None


def _whole_windows(node: Node) -> bool:
    """Does every window lie inside the map, and does pooling make it smaller?"""
    a = node.attrs
    inside = all(
        (outputs - 1) * stride + kernel <= size
        for outputs, stride, kernel, size in zip(node.shape[1:], a["stride"], a["kernel"], a["input_size"], strict=True)
    )
    return inside and not any(a["padding"]) and a["divisor"] is None and max(a["stride"]) > 1
