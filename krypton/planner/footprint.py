"""The memory that a plan needs at its peak, beyond the model: what is alive at the same time, as the executor frees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan, TensorPlan
from krypton.kernels import DEFERRED, find
from krypton.operators.base import operator_of
from krypton.planner.cost import BYTES
from krypton.planner.fields import Fields
from krypton.planner.inference import Inference
from krypton.planner.whole import last_uses

_PROCESS = 24 * 2**20  # libraries' buffers, and their code that runs for the first time
# what the heap takes per byte that is alive, for blocks of many sizes come and go: ...
_SAME_BATCHES = 1.75  # ... the same ones with every batch
_OTHER_TILES = 2.5  # ... others with every tile


def naive_bytes(plan: QueryPlan, inference: Inference) -> int:
    """Full inference of a batch of occluded images, which are there besides what the model computes of them."""
    size = min(plan.batch, plan.occlusions.count)
    alive = size * (inference.peak_bytes + 2 * math.prod(plan.input_shape) * BYTES)
    return round(_PROCESS + _SAME_BATCHES * alive)


def incremental_bytes(plan: QueryPlan, tensor: TensorPlan, fields: Fields) -> int:
    """Kept views and logits, and the largest of what comes one after the other: views, tiles, head. Without weights."""
    graph = tensor.graph
    logits = plan.occlusions.count * math.prod(graph.index()[graph.output].shape) * BYTES
    kept = _PROCESS + _views(tensor) + 2 * logits
    tiles = tensor.tiling.tiles(plan.occlusions)
    head = [node for node in graph if node.mode in ("full", "once") and node.op != "image"]
    crossing = sum(math.prod(node.shape) for node in graph if node.mode == "project") * BYTES
    waiting = 2 * crossing * (tensor.head_batch + max(len(tile.indices) for tile in tiles))  # parts, and they put together
    running = max(_trunk_peak(tensor, tiles, fields), _whole_peak(head, tensor.head_batch, _between(tensor)))
    return round(kept + _OTHER_TILES * max(_whole_peak(graph.nodes, 1), running + waiting))


def prepared_bytes(graph: Graph) -> int:
    """Weights as kernels have them, besides the model's own; those derived from others are kept, too."""
    total = 0
    for node in graph:
        name, count = node.own_kernel, operator_of(node).multiply_adds
        if node.op == "conv" and name:
            total += (find("conv", name).work or count)(node, 1, 1)
        if any("(" in reference for reference in node.weights.values()):
            total += count(node, 1, 1)
    return total * BYTES


def _between(tensor: TensorPlan) -> set[int]:
    """Nodes whose values stay inside a chain, and take no memory of their own."""
    return {node for chain in tensor.chains for node in chain[:-1]}


def _whole_peak(nodes: Iterable[Node], batch: int, between: Collection[int] = ()) -> int:
    """Whole values; an ending that is a pass of its own has two results for a moment."""
    sizes = {node.id: 0 if node.id in between else math.prod(node.shape) * BYTES * batch for node in nodes}
    return _peak(list(nodes), lambda node: sizes[node.id], lambda node: sizes[node.id] if node.epilogue else 0)


def _trunk_peak(tensor: TensorPlan, tiles: list[OcclusionTile], fields: Fields) -> int:
    """The deltas of the tile that needs most; those that are written into another's buffer, or stay
    inside a chain, take no memory of their own."""
    graph, between = tensor.graph, _between(tensor)
    trunk = [node for node in graph if node.mode in ("delta", "project")]
    peak = 0
    for tile in _largest(tiles):
        rows, columns, batch = fields.axis(0, tile.rows), fields.axis(1, tile.columns), len(tile.indices)
        sizes: dict[int, int] = {}
        for node in trunk:
            if node.mode == "project":
                sizes[node.id] = math.prod(node.shape) * batch * BYTES
            elif node.kernel == DEFERRED or node.id in fields.places or node.id in between:
                sizes[node.id] = 0
            else:
                sizes[node.id] = node.shape[0] * rows[node.id].stored.size * columns[node.id].stored.size * batch * BYTES
        peak = max(peak, _peak(trunk, lambda node, sizes=sizes: sizes[node.id], lambda node: 0))  # type: ignore[misc]
    return peak


def _largest(tiles: list[OcclusionTile], most: int = 3) -> list[OcclusionTile]:
    def size(tile: OcclusionTile) -> int:
        return tile.rows.size * tile.columns.size * len(tile.indices)

    return sorted(tiles, key=size, reverse=True)[:most]


def _peak(nodes: list[Node], size: Callable[[Node], int], extra: Callable[[Node], int]) -> int:
    """The most bytes at any time, when each value is freed behind its last reader."""
    last: Mapping[int, int] = last_uses(nodes)
    alive: dict[int, int] = {}
    peak = 0
    for place, node in enumerate(nodes):
        alive[node.id] = size(node)
        peak = max(peak, sum(alive.values()) + extra(node))
        for source in set(node.inputs):
            if last[source] == place:
                alive.pop(source, None)
    return peak


def _views(tensor: TensorPlan) -> int:
    shapes = {node.id: node.shape for node in tensor.graph}
    kept = [node for node, _ in tensor.views] if tensor.views is not None else list(shapes)
    return sum(math.prod(shapes[node]) for node in kept) * BYTES
