"""The compiled kernels of a plan's head: what runs its nodes on whole values instead of PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping

from krypton.ir.graph import Graph, Node
from krypton.ir.plan import TensorPlan
from krypton.ir.weights import WeightStore
from krypton.kernels import DEFERRED, Kernel, find
from krypton.kernels.links import inner, last
from krypton.kernels.whole import WholeRunner, build_whole, gated, joined, whole_kernel
from krypton.planner.placement import placements
from krypton.planner.rules.defer_gate import deferrable
from krypton.planner.whole import Rooms


class HeadKernels:
    """`runners` by node id, shared by all runs on these weights; nodes without one are PyTorch's."""

    def __init__(self, plan: TensorPlan, weights: WeightStore) -> None:
        graph = plan.graph
        able = deferrable(graph)
        self.runners: dict[int, WholeRunner] = {}
        for node in graph:
            if node.kernel == DEFERRED and node.id in able:
                self.runners[node.id] = gated
            elif (kernel := whole_kernel(node)) is not None:
                self.runners[node.id] = _shared(kernel, node, weights)
        writers = _writers(graph, self.runners)
        self._places = placements(graph, lambda node: node.id in writers)
        nodes = graph.index()
        self._roots = {place.root: nodes[place.root] for place in self._places.values()}
        for chain in plan.chains:
            members = [nodes[node] for node in chain]
            if all(node.mode == "full" and find("conv", node.kernel).chained for node in members):
                self.runners |= {node.id: inner(node, self.runners[node.id]) for node in members[:-1]}
                self.runners[chain[-1]] = last(self.runners[chain[-1]])
        self.runners |= {node: joined for node in (*self._roots, *self._places) if nodes[node].op == "concat"}

    def rooms(self) -> Rooms:
        """Buffers for one batch."""
        return Rooms(self._places, self._roots)


def _writers(graph: Graph, runners: Mapping[int, WholeRunner]) -> set[int]:
    """The nodes that write their whole values where they are told to, and the concats that this is worth it for."""
    found = {node for node, runner in runners.items() if runner is not gated}
    for node in graph:
        if node.op == "concat" and node.mode == "full" and node.spatial and found.intersection(node.inputs):
            found.add(node.id)
    return found


def _shared(kernel: Kernel, node: Node, weights: WeightStore) -> WholeRunner:
    key = "whole", kernel, json.dumps(node.attrs), node.shape, tuple(node.weights.items()), node.epilogue
    return weights.prepared(key, lambda: build_whole(kernel, node, weights.get))
