"""What plans cost: multiply-adds and bytes exact from geometry, milliseconds from a device profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from krypton.ir.delta import Box
from krypton.ir.geometry import Interval
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import Cost
from krypton.operators.base import operator_of
from krypton.planner.fields import Fields

BYTES = 4  # of a float32


@dataclass(frozen=True)
class DeviceProfile:
    """How fast a device is. The defaults are two cores of a current server processor."""

    multiply_adds_per_ms: float = 9.5e7
    bytes_per_ms: float = 1.2e7
    node_overhead_ms: float = 0.06


def node_cost(node: Node, box: Box, batch: int, profile: DeviceProfile) -> Cost:
    """One occlusion's share of a node whose output has this box, in a batch of this size."""
    whole = node.shape[1:] if node.spatial else (1, 1)
    multiply_adds = 0 if box.empty else operator_of(node).multiply_adds(node, *(i.size for i in box))
    elements = node.shape[0] if node.shape else 1
    # the result is written once, and a fused epilogue reads it, the base and another term
    moved = elements * max(box.area, 1) * BYTES * (1 + (3 if node.epilogue else 0))
    streamed = _weight_bytes(node) / batch
    milliseconds = (
        multiply_adds / profile.multiply_adds_per_ms
        + (moved + streamed) / profile.bytes_per_ms
        + profile.node_overhead_ms / batch
    )
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


def whole_box(node: Node) -> Box:
    height, width = node.shape[1:] if node.spatial else (1, 1)
    return Box(Interval(0, height), Interval(0, width))


def plan_costs(
    graph: Graph, fields: Fields, tiles: Iterable[OcclusionTile], head_batch: int, profile: DeviceProfile
) -> Mapping[int, Cost]:
    """Average cost per occlusion of every node; the shown field is that of the middle tile."""
    tiles = list(tiles)
    total = sum(len(tile.indices) for tile in tiles)
    middle = min(tiles, key=lambda tile: _off_centre(tile, graph.image))
    costs: dict[int, Cost] = {}
    for node in graph:
        if node.mode not in ("delta", "project"):
            costs[node.id] = node_cost(node, whole_box(node), head_batch, profile)
            continue
        weighted: dict[tuple[Box, int], int] = {}
        for tile in tiles:
            key = fields.box(node, tile.rows, tile.columns), len(tile.indices)
            weighted[key] = weighted.get(key, 0) + len(tile.indices)
        average = [(node_cost(node, box, size, profile), count) for (box, size), count in weighted.items()]
        shown = node_cost(node, fields.box(node, middle.rows, middle.columns), len(middle.indices), profile)
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
