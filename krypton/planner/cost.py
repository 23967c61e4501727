"""What plans cost: multiply-adds and bytes exact from geometry, milliseconds from a device profile."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from krypton.ir.delta import Box
from krypton.ir.geometry import Interval, make
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import Cost
from krypton.kernels import DEFERRED, Kernel, able, find
from krypton.kernels.whole import able_whole
from krypton.operators.base import operator_of
from krypton.planner.fields import Fields
from krypton.planner.profile import DeviceProfile, Shape

__all__ = ["BYTES", "DeviceProfile", "Extent", "KernelCost", "Pricing", "plan_costs", "sizes", "usually_kept", "whole_box"]

BYTES = 4  # of a float32
CPU = torch.device("cpu")


def usually_kept(keep: float) -> float:
    """What an energy cut leaves of the cost of increments, before it has seen where changes are: times are mostly 0.6
    to 0.9 of exact ones with 0.999, and a fifth less for every nine less (docs/approximation.md)."""
    return 1.0 if keep >= 1 else min(max(0.25 - 0.2 * math.log10(1 - keep), 0.3), 1.0)


class KernelCost(NamedTuple):
    """What one occlusion's share of a node costs with one kernel."""

    kernel: str
    milliseconds: float


class Pricing:
    """What a node costs on boxes of any size: its kernels are looked up once, as planning asks for many sizes."""

    def __init__(self, node: Node, profile: DeviceProfile, device: torch.device = CPU, *, exact: bool = True) -> None:
        self._node, self._profile, self._operator = node, profile, operator_of(node)
        kernels = _candidates(node, device, exact)
        self._known = [kernel for kernel in kernels if profile.measured(kernel.name)]
        # nobody measured the others: one that claims to be better than all known ones is believed to be a little
        best = max((kernel.priority for kernel in self._known), default=0)
        self._believed = [k for k in kernels if k not in self._known and (k.priority > best or not self._known)]

    def kernels(self, box: Box, batch: int, own: Box | None = None) -> list[KernelCost]:
        """Every kernel that can run the node's own arithmetic, the cheapest first; the one that is set, if one is.

        `box` is that of all occlusions together, `own` that of one of them, which is all that fused kernels work on.
        """
        own = box if own is None else own
        costs = [self._with(kernel, box, batch, own) for kernel in self._known]
        costs.sort(key=lambda cost: cost.milliseconds)
        claims = [self._with(kernel, box, batch, own) for kernel in self._believed]
        if costs:
            claims = [KernelCost(claim.kernel, 0.99 * costs[0].milliseconds) for claim in claims]
        return [*claims, *costs]

    def cost(self, box: Box, batch: int, own: Box | None = None) -> Cost:
        """One occlusion's share of the node when its output has this box, in a batch of this size; `own` as in `kernels`."""
        node, profile = self._node, self._profile
        whole = node.shape[1:] if node.spatial else (1, 1)
        worked = own if own is not None and self.tight else box
        multiply_adds = 0 if worked.empty else self._operator.multiply_adds(node, *(i.size for i in worked))
        moved = 0 if node.kernel == DEFERRED else _ending_bytes(node, box)
        streamed = _weight_bytes(node) / batch
        kernels = self.kernels(box, batch, own)
        if kernels:
            milliseconds = kernels[0].milliseconds
        else:
            spent = multiply_adds / profile.multiply_adds_per_ms + (moved + streamed) / profile.bytes_per_ms
            milliseconds = spent + profile.node_overhead_ms / batch
        return Cost(
            (box.rows.size, box.columns.size),
            multiply_adds,
            self._operator.multiply_adds(node, *whole),
            int(moved + streamed),
            milliseconds,
        )

    def weights_read(self, box: Box, batch: int) -> int:
        """Bytes of weights that the fastest kernel reads per batch; Winograd's are several times as many."""
        kernels = self.kernels(box, batch)
        work = find("conv", kernels[0].kernel).work if kernels else None
        return (work or self._operator.multiply_adds)(self._node, 1, 1) * BYTES

    @property
    def tight(self) -> bool:
        """Is each occlusion computed in its own field, not in the box of all?"""
        return any(kernel.fused for kernel in (*self._believed, *self._known))

    def _with(self, kernel: Kernel, box: Box, batch: int, own: Box) -> KernelCost:
        node, profile = self._node, self._profile
        box = own if kernel.fused else box
        work = (kernel.work or self._operator.multiply_adds)(node, box.rows.size, box.columns.size) if box.area else 0
        spent = work / profile.rate(kernel.name, matrix_shape(node, box, batch))
        if not kernel.fused:  # its ending is another pass over memory
            spent += _ending_bytes(node, box) / profile.bytes_per_ms
        return KernelCost(kernel.name, spent + profile.node_overhead_ms / batch)


def _candidates(node: Node, device: torch.device, exact: bool) -> list[Kernel]:
    if node.op != "conv":
        return []
    if node.kernel:
        return [find("conv", node.own_kernel)]
    return able_whole(node, device) if node.mode == "full" else able("conv", node, device, exact=exact)


def matrix_shape(node: Node, box: Box, batch: int) -> Shape:
    """The product that a convolution's output box comes down to, all occlusions together."""
    return Shape(operator_of(node).multiply_adds(node, 1, 1) // node.shape[0], node.shape[0], box.area * batch)


def _ending_bytes(node: Node, box: Box) -> int:
    """The result is written once, and a fused epilogue reads it, the base and another term."""
    elements = node.shape[0] if node.shape else 1
    return elements * max(box.area, 1) * BYTES * (1 + (3 if node.epilogue else 0))


def _weight_bytes(node: Node) -> int:
    """The weights of a node, read once per batch: as many as the multiply-adds of one output pixel."""
    return operator_of(node).multiply_adds(node, 1, 1) * BYTES


def whole_box(node: Node) -> Box:
    height, width = node.shape[1:] if node.spatial else (1, 1)
    return Box(Interval(0, height), Interval(0, width))


class Extent(NamedTuple):
    """The size of a node's output in a tile: the box that all occlusions share, that of a single one, and how many they are."""

    box: Box
    own: Box
    batch: int


def sizes(fields: Fields, node: Node, tiles: Iterable[OcclusionTile]) -> Counter[Extent]:
    """How many tiles have which extent; boxes are moved to the origin, for costs are of sizes alone."""
    found: Counter[Extent] = Counter()
    for tile in tiles:
        rows, columns = fields.box(node, tile.rows, tile.columns)
        box = Box(make(0, rows.size), make(0, columns.size))
        found[Extent(box, fields.typical_box(node, tile), len(tile.indices))] += 1
    return found


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
        pricing = Pricing(node, profile, device)
        if node.mode == "frozen":
            costs[node.id] = Cost((0, 0), 0, pricing.cost(whole_box(node), 1).full_multiply_adds, 0, 0.0)
            continue
        if node.mode not in ("delta", "project"):
            costs[node.id] = pricing.cost(whole_box(node), head_batch)
            continue
        weighted = sizes(fields, node, tiles)
        average = [(pricing.cost(box, batch, own), count * batch) for (box, own, batch), count in weighted.items()]
        shown = pricing.cost(fields.box(node, middle.rows, middle.columns), len(middle.indices))
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
