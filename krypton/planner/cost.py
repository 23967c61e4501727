"""What plans cost: multiply-adds and bytes exact from geometry, milliseconds from a device profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from krypton.ir.delta import Box
from krypton.ir.geometry import Interval
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import Cost
from krypton.kernels import DEFERRED, Kernel, able, find
from krypton.kernels.whole import able_whole
from krypton.operators.base import operator_of
from krypton.planner.fields import Fields
from krypton.planner.profile import DeviceProfile, Shape

__all__ = ["BYTES", "DeviceProfile", "KernelCost", "kernel_costs", "node_cost", "plan_costs", "whole_box"]

BYTES = 4  # of a float32
CPU = torch.device("cpu")


class KernelCost(NamedTuple):
    """What one occlusion's share of a node costs with one kernel."""

    kernel: str
    milliseconds: float


def kernel_costs(
    node: Node, box: Box, batch: int, profile: DeviceProfile, device: torch.device = CPU, *, exact: bool = True
) -> list[KernelCost]:
    """Every kernel that can run a node's own arithmetic, the cheapest first; the one that is set, if one is."""
    if node.op != "conv":
        return []
    if node.kernel:
        kernels = [find("conv", node.kernel.split("+")[0])]
    elif node.mode == "full":
        kernels = able_whole(node, device)
    else:
        kernels = able("conv", node, device, exact=exact)
    known = [kernel for kernel in kernels if profile.measured(kernel.name)]
    # nobody measured the others: one that claims to be better than all known ones is believed to be a little
    best = max((kernel.priority for kernel in known), default=0)
    believed = [kernel for kernel in kernels if kernel not in known and (kernel.priority > best or not known)]
    costs = [_with_kernel(node, kernel, box, batch, profile) for kernel in known]
    costs.sort(key=lambda cost: cost.milliseconds)
    claims = [_with_kernel(node, kernel, box, batch, profile) for kernel in believed]
    if costs:
        claims = [KernelCost(claim.kernel, 0.99 * costs[0].milliseconds) for claim in claims]
    return [*claims, *costs]


def _with_kernel(node: Node, kernel: Kernel, box: Box, batch: int, profile: DeviceProfile) -> KernelCost:
    rows, columns = (i.size for i in box)
    work = (kernel.work or operator_of(node).multiply_adds)(node, rows, columns) if box.area else 0
    spent = work / profile.rate(kernel.name, matrix_shape(node, box, batch))
    if not kernel.fused:  # its ending is another pass over memory
        spent += _ending_bytes(node, box) / profile.bytes_per_ms
    return KernelCost(kernel.name, spent + profile.node_overhead_ms / batch)


def matrix_shape(node: Node, box: Box, batch: int) -> Shape:
    """The product that a convolution's output box comes down to, all occlusions together."""
    return Shape(operator_of(node).multiply_adds(node, 1, 1) // node.shape[0], node.shape[0], box.area * batch)


def _ending_bytes(node: Node, box: Box) -> int:
    """The result is written once, and a fused epilogue reads it, the base and another term."""
    elements = node.shape[0] if node.shape else 1
    return elements * max(box.area, 1) * BYTES * (1 + (3 if node.epilogue else 0))


def node_cost(node: Node, box: Box, batch: int, profile: DeviceProfile, device: torch.device = CPU) -> Cost:
    """One occlusion's share of a node whose output has this box, in a batch of this size."""
    whole = node.shape[1:] if node.spatial else (1, 1)
    multiply_adds = 0 if box.empty else operator_of(node).multiply_adds(node, *(i.size for i in box))
    moved = 0 if node.kernel == DEFERRED else _ending_bytes(node, box)
    streamed = _weight_bytes(node) / batch
    kernels = kernel_costs(node, box, batch, profile, device)
    if kernels:
        milliseconds = kernels[0].milliseconds
    else:
        spent = multiply_adds / profile.multiply_adds_per_ms + (moved + streamed) / profile.bytes_per_ms
        milliseconds = spent + profile.node_overhead_ms / batch
    return Cost(
        (box.rows.size, box.columns.size),
        multiply_adds,
        operator_of(node).multiply_adds(node, *whole),
        int(moved + streamed),
        milliseconds,
    )


def _weight_bytes(node: Node) -> int:
    """The weights of a node, read once per batch: as many as the multiply-adds of one output pixel."""
    return operator_of(node).multiply_adds(node, 1, 1) * BYTES


def weights_read(node: Node, box: Box, batch: int, profile: DeviceProfile, device: torch.device = CPU) -> int:
    """Bytes of weights that a node's fastest kernel reads per batch; Winograd's are several times as many."""
    kernels = kernel_costs(node, box, batch, profile, device)
    work = find("conv", kernels[0].kernel).work if kernels else None
    return (work or operator_of(node).multiply_adds)(node, 1, 1) * BYTES


def whole_box(node: Node) -> Box:
    height, width = node.shape[1:] if node.spatial else (1, 1)
    return Box(Interval(0, height), Interval(0, width))


def plan_costs(
    graph: Graph,
    fields: Fields,
    tiles: Iterable[OcclusionTile],
    head_batch: int,
    profile: DeviceProfile,
    device: torch.device = CPU,
) -> Mapping[int, Cost]:
    """Average cost per occlusion of every node; the shown field is that of the middle tile."""
    tiles = list(tiles)
    total = sum(len(tile.indices) for tile in tiles)
    middle = min(tiles, key=lambda tile: _off_centre(tile, graph.image))
    costs: dict[int, Cost] = {}
    for node in graph:
        if node.mode not in ("delta", "project"):
            costs[node.id] = node_cost(node, whole_box(node), head_batch, profile, device)
            continue
        weighted: dict[tuple[Box, int], int] = {}
        for tile in tiles:
            key = fields.box(node, tile.rows, tile.columns), len(tile.indices)
            weighted[key] = weighted.get(key, 0) + len(tile.indices)
        average = [(node_cost(node, box, size, profile, device), count) for (box, size), count in weighted.items()]
        shown = node_cost(node, fields.box(node, middle.rows, middle.columns), len(middle.indices), profile, device)
        costs[node.id] = Cost(
            shown.field,
            round(sum(c.multiply_adds * n for c, n in average) / total),
            shown.full_multiply_adds,
            round(sum(c.bytes * n for c, n in average) / total),
            sum(c.milliseconds * n for c, n in average) / total,
        )
    return costs


def _off_centre(tile: OcclusionTile, image: Node) -> int:
    """How far a tile is from the middle of the image, in half pixels."""
    _, height, width = image.shape
    return abs(tile.rows.start + tile.rows.stop - height) + abs(tile.columns.start + tile.columns.stop - width)
