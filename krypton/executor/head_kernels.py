"""The compiled kernels of a plan's head: what runs its nodes on whole values instead of PyTorch."""

from __future__ import annotations

import json

from krypton.ir.graph import Graph, Node
from krypton.ir.weights import WeightStore
from krypton.kernels import DEFERRED, Kernel
from krypton.kernels.whole import WholeRunner, build_whole, gated, whole_kernel
from krypton.planner.rules.defer_gate import deferrable


def build_head_kernels(graph: Graph, weights: WeightStore) -> dict[int, WholeRunner]:
    """Runners by node id, shared by all runs on these weights; nodes without one are PyTorch's."""
    able = deferrable(graph)
    runners: dict[int, WholeRunner] = {}
    for node in graph:
        if node.kernel == DEFERRED and node.id in able:
            runners[node.id] = gated
        elif (kernel := whole_kernel(node)) is not None:
            runners[node.id] = _shared(kernel, node, weights)
    return runners


def _shared(kernel: Kernel, node: Node, weights: WeightStore) -> WholeRunner:
    key = "whole", kernel, json.dumps(node.attrs), node.shape, tuple(node.weights.items()), node.epilogue
    return weights.prepared(key, lambda: build_whole(kernel, node, weights.get))
