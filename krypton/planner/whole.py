"""Running a graph on whole values: for base views, for what follows projections, and to check captured graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from krypton.ir.graph import Graph, Node
from krypton.ir.weights import Reference, WeightStore
from krypton.kernels.links import Linked
from krypton.kernels.whole import WholeRunner
from krypton.operators.base import ViewKey, operator_of
from krypton.operators.combine import apply_epilogue
from krypton.planner.placement import Place


class Rooms:
    """Buffers of the concats of one batch, whose parts are written straight into them; `places` as in `placement`."""

    def __init__(self, places: Mapping[int, Place], roots: Mapping[int, Node]) -> None:
        self._places, self._roots = places, roots
        self._buffers: dict[int, Tensor] = {}

    def of(self, node: Node, batch: int) -> Tensor | None:
        """Where a node's result (B, C, H, W) belongs; None where that is up to the node."""
        root, start = self._places.get(node.id, (node.id, 0))
        if root not in self._roots:
            return None
        if root not in self._buffers:
            shape = (batch, *self._roots[root].shape)
            self._buffers[root] = torch.empty(shape, memory_format=torch.channels_last)
        # the concat itself comes last, and lives as long as it is read
        buffer = self._buffers.pop(root) if node.id == root else self._buffers[root]
        return buffer[:, start : start + node.shape[0]]


@dataclass
class WholeBatch:
    """What operators see of a batch on whole values."""

    batch: int
    device: torch.device
    weight: Callable[[Reference], Tensor]
    kernels: Mapping[int, WholeRunner] = field(default_factory=dict)
    """Nodes that are not run by PyTorch; only their results are there, not what a function was applied to."""
    rooms: Rooms = field(default_factory=lambda: Rooms({}, {}))


def run_node(node: Node, inputs: list[Tensor], batch: WholeBatch) -> tuple[Tensor, Tensor]:
    """What the node's epilogue function is applied to, and the result (the same, without a function)."""
    if (kernel := batch.kernels.get(node.id)) is not None:
        result: Any = kernel(inputs, batch.rooms.of(node, batch.batch))  # a deferred gate for its only reader, else a tensor
        return result, result
    operator = operator_of(node)
    own = operator.full(node, inputs[: operator.arity], batch) if node.op != "combine" else None
    if node.epilogue is None:
        assert own is not None
        return own, own
    return apply_epilogue(node.epilogue, own, inputs, batch.weight)


def run_nodes(
    nodes: Collection[Node],
    values: dict[int, Tensor],
    batch: WholeBatch,
    wanted: Collection[int],
    keep: Callable[[ViewKey, Tensor], None] | None = None,
    check: Callable[[], None] | None = None,
    took: Callable[[Node, float], None] | None = None,
) -> dict[int, Tensor]:
    """Run nodes in order from the given values; everything is freed at its last use except what is wanted.

    `keep` is shown what `run_node` returns, `took` the seconds of each node; `check` is called before each.
    """
    last = last_uses(nodes)
    for place, node in enumerate(nodes):
        if check:
            check()
        started = time.perf_counter()
        inputs = [values[source] for source in node.inputs]
        before, result = run_node(node, inputs, batch)
        values[node.id] = result
        if took:
            _report(node, inputs, time.perf_counter() - started, took)
        if keep:
            keep((node.id, "pre"), before)
            keep((node.id, "out"), result)
        del inputs, before, result
        for source in set(node.inputs):
            if last[source] == place and source not in wanted:
                values.pop(source, None)
    return values


def _report(node: Node, inputs: Sequence[Any], seconds: float, took: Callable[[Node, float], None]) -> None:
    """The seconds of a node, and of those that it ran as the last of their chain."""
    if inputs and isinstance(inputs[0], Linked) and inputs[0].spent:
        for linked, share in inputs[0].shares(node, seconds):
            took(linked, share)
    else:
        took(node, seconds)


def last_uses(nodes: Collection[Node]) -> Mapping[int, int]:
    """For every value, the place of the last node that reads it."""
    return {source: place for place, node in enumerate(nodes) for source in node.inputs}


@torch.no_grad()
def run_whole(graph: Graph, weights: WeightStore, images: Tensor) -> Tensor:
    """Logits (B, K) of a graph on images (B, C, H, W), nothing incremental about it."""
    batch = WholeBatch(images.shape[0], images.device, lambda reference: weights.get(reference).to(images.device))
    values = run_nodes(graph.nodes[1:], {graph.image.id: images}, batch, {graph.output})
    return values[graph.output].float()
