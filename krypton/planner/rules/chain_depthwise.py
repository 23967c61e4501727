"""chain_depthwise: convolutions around a depthwise one run a few occlusions at a time, one after the other.

A depthwise convolution computes little for what it reads and writes, and mobile networks put it between 1×1 convolutions on
many channels: taken through all of them together, a few occlusions' values stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import QueryPlan
from krypton.kernels import find
from krypton.planner.rules.base import Context, tensor_plan


def chain_depthwise(plan: QueryPlan, context: Context) -> QueryPlan:
    """Find the chains; the nodes stay as they are."""
    tensor = tensor_plan(plan)
    return replace(plan, tensor=replace(tensor, chains=tuple(chain for chain in _chains(tensor.graph) if len(chain) > 1)))


def _chains(graph: Graph) -> Iterator[tuple[int, ...]]:
    """Every depthwise convolution with the 1×1 ones that make its input and read its output, if there are any."""
    consumers, nodes = graph.consumers(), graph.index()
    taken: set[int] = set()

    def feeds(source: Node, reader: Node) -> bool:
        # what else the source sums would have to be added where only links write
        alone = consumers[source.id] == [reader] and reader.inputs[0] == source.id and len(source.inputs) == 1
        return alone and source.mode == reader.mode and source.id not in reader.inputs[1:] and source.id != graph.output

    for node in graph:
        if not _depthwise(node):
            continue
        before, after = nodes[node.inputs[0]], consumers[node.id][0] if consumers[node.id] else node
        chain = [n.id for n in (before,) if n.id not in taken and _pointwise(n) and feeds(n, node)]
        chain += [node.id, *(n.id for n in (after,) if _pointwise(n) and feeds(node, n))]
        taken.update(chain)
        yield tuple(chain)


def _chained(node: Node) -> bool:
    able = node.op == "conv" and node.mode in ("delta", "full") and bool(node.kernel)
    return able and find("conv", node.own_kernel).chained


def _depthwise(node: Node) -> bool:
    return _chained(node) and node.attrs["groups"] == node.attrs["in_channels"] > 1


def _pointwise(node: Node) -> bool:
    return _chained(node) and tuple(node.attrs["kernel"]) == (1, 1) and node.attrs["groups"] == 1
