"""Gathering occlusions into tiles: neighbours share boxes, so that one batch has one geometry (design, section 2).

A tile costs an overhead once: operators started, weights read; and for each of its occlusions the arithmetic, of its own field
where kernels leave out the rest, of the tile's box elsewhere, and memory that is written for the whole box. Large tiles
waste the latter, small ones overhead. Fields are monotone, so the box of a run of neighbours is found from the
fields of its first and its last; the best split of an axis then is a shortest path (dynamic programming).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from krypton.ir.delta import Box
from krypton.ir.geometry import Interval, make
from krypton.ir.graph import Graph
from krypton.ir.occlusions import Grid, Lattice, Masks, Occlusions, OcclusionTile, Tiling, tile_around
from krypton.kernels import DEFERRED
from krypton.operators.base import Axis
from krypton.planner.cost import BYTES, DeviceProfile, Pricing
from krypton.planner.fields import Fields
from krypton.settings import Settings

LONGEST_RUN = 8
MOST_TOGETHER = 36  # more do not pay: what a batch writes leaves the caches
TOGETHER = (9, 12, 16, 20, 25, 30, 36)  # the bounds that are tried on occlusions per tile
EVEN_RUN = 4
USUAL_SIDE = 14  # of the boxes that costs per pixel are taken from
ROUNDS = 2

Array = NDArray[np.float64]


def even_tiling(occlusions: Occlusions, run: int = EVEN_RUN, lattice: Lattice | None = None) -> Tiling:
    """Runs of equal length along both axes; masks in groups of as many."""
    if isinstance(occlusions, Masks):
        return Tiling(groups=tuple(tuple(group) for group in _cut(range(occlusions.count), run * run)))
    rows, columns = occlusions.shape if lattice is None else map(len, lattice)
    return Tiling(rows=_intervals(_cut(range(rows), run)), columns=_intervals(_cut(range(columns), run)))


def thinned(tiles: Sequence[OcclusionTile], occlusions: Occlusions, chosen: Collection[int]) -> list[OcclusionTile]:
    """Just the chosen occlusions of some tiles, in boxes that contain no more than those."""
    wanted = set(chosen)
    return gathered(([index for index in tile.indices if index in wanted] for tile in tiles), occlusions)


def gathered(groups: Iterable[Sequence[int]], occlusions: Occlusions) -> list[OcclusionTile]:
    """A tile of each of these groups of occlusions that is not empty."""
    boxes = occlusions.rectangles().reshape(-1, 4)
    return [tile_around(group, boxes) for group in groups if group]


def sample(tiles: Sequence[OcclusionTile], most: int) -> list[OcclusionTile]:
    """At most so many tiles, evenly drawn, the first and the last among them."""
    if len(tiles) <= most:
        return list(tiles)
    return [tiles[round(i * (len(tiles) - 1) / (most - 1))] for i in range(most)]


def cheapest_tiling(
    graph: Graph, occlusions: Occlusions, profile: DeviceProfile, settings: Settings, lattice: Lattice | None = None
) -> Tiling:
    """The split with the least predicted time; with a `lattice`, of its rows and columns alone."""
    most = min(settings["batch"] or MOST_TOGETHER, MOST_TOGETHER)
    if graph.image.mode != "delta":  # nothing is shared: tiles are just batches
        return even_tiling(occlusions, max(int(most**0.5), 1), lattice)
    load = _Load.of(graph, profile)
    if isinstance(occlusions, Masks):
        return _mask_tiling(load, occlusions, most)
    chosen = lattice or tuple(range(count) for count in occlusions.shape)
    axes = [load.extents(axis, [occlusions.intervals(axis)[i] for i in chosen[axis]]) for axis in (0, 1)]
    found = [_grid_tiling(load, axes, together) for together in sorted({min(together, most) for together in TOGETHER})]
    return min(found, key=lambda tiling: load.milliseconds(axes, tiling))


@dataclass
class _Load:
    """What the tracked nodes of a graph cost: per output pixel, and per batch."""

    fields: Fields
    ids: list[int]
    per_pixel: Array  # (nodes,) milliseconds for one pixel of the box, and one occlusion
    bytes_per_pixel: Array  # (nodes,) written for one output pixel of one occlusion
    overhead: float  # milliseconds per batch
    profile: DeviceProfile

    @classmethod
    def of(cls, graph: Graph, profile: DeviceProfile) -> _Load:
        nodes = [node for node in graph if node.mode == "delta" and node.op != "image"]
        started = replace(profile, node_overhead_ms=0.0)  # that is paid per batch, not per pixel
        boxes = [Box(*(Interval(0, min(side, USUAL_SIDE)) for side in node.shape[1:])) for node in nodes]
        priced = [(Pricing(node, started), box) for node, box in zip(nodes, boxes, strict=True)]
        written = np.array([node.shape[0] * BYTES if node.kernel != DEFERRED else 0 for node in nodes], dtype=np.float64)
        # what is computed in own fields alone takes as long in any tiling; their boxes are written all the same
        per_pixel = [
            float(size) / profile.bytes_per_ms if pricing.tight else pricing.cost(box, EVEN_RUN**2).milliseconds / box.area
            for (pricing, box), size in zip(priced, written, strict=True)
        ]
        weights = sum(pricing.weights_read(box, EVEN_RUN**2) for pricing, box in priced)
        overhead = weights / profile.bytes_per_ms + len(nodes) * profile.node_overhead_ms
        return cls(Fields(graph), [node.id for node in nodes], np.array(per_pixel), written, float(overhead), profile)

    def extents(self, axis: Axis, occluded: Sequence[Interval]) -> tuple[Array, Array]:
        """Where fields start and stop, each (occlusions, nodes); empty ones are 0 to 0."""
        fields = [self.fields.changed(axis, interval) for interval in occluded]
        starts = np.array([[field[i].start for i in self.ids] for field in fields], dtype=np.float64)
        stops = np.array([[field[i].stop for i in self.ids] for field in fields], dtype=np.float64)
        return starts, stops

    def milliseconds(self, axes: list[tuple[Array, Array]], tiling: Tiling) -> float:
        """What all tiles take besides what any tiling does: what a batch writes, and reads again, should stay in the cache."""
        sizes, counts = [], []
        for (starts, stops), runs in zip(axes, (tiling.rows, tiling.columns), strict=True):
            sizes.append(np.stack([np.maximum(stops[run.stop - 1] - starts[run.start], 0.0) for run in runs]))
            counts.append(np.array([run.size for run in runs], dtype=np.float64))
        pixels = np.einsum("rn,cn,r,c->nrc", *sizes, *counts)  # of all occlusions of a tile
        spilled = np.maximum(pixels * self.bytes_per_pixel[:, None, None] - self.profile.cache_bytes, 0.0)
        arithmetic = float(np.einsum("n,nrc->", self.per_pixel, pixels))
        total: float = (
            arithmetic + float(spilled.sum()) / self.profile.bytes_per_ms + self.overhead * pixels.shape[1] * pixels.shape[2]
        )
        return total


def _grid_tiling(load: _Load, axes: list[tuple[Array, Array]], most: int) -> Tiling:
    splits = [_cut(range(len(starts)), EVEN_RUN) for starts, _ in axes]
    for _ in range(ROUNDS):
        for axis in (0, 1):
            # beside this axis lie the other's tiles: their sizes weighted by how many occlusions each holds
            starts, stops = axes[1 - axis]
            other = splits[1 - axis]
            count = len(starts)
            across = sum(len(run) * (stops[run[-1]] - starts[run[0]]) for run in other)
            longest = min(LONGEST_RUN, max(most // max(len(run) for run in other), 1))
            per_run = load.per_pixel * across
            splits[axis] = _split(axes[axis], per_run, load.overhead * len(other), longest)
            assert sum(len(run) for run in splits[1 - axis]) == count
    return Tiling(rows=_intervals(splits[0]), columns=_intervals(splits[1]))


def _split(extents: tuple[Array, Array], weights: Array, overhead: float, longest: int) -> list[range]:
    """The cheapest cut of a sequence into runs: a run of n costs overhead + n · Σ weights · (union of its fields)."""
    starts, stops = extents
    count = len(starts)
    # by length, and by first occlusion
    runs = [
        overhead + length * (np.maximum(stops[length - 1 :] - starts[: count - length + 1], 0.0) @ weights)
        for length in range(1, min(longest, count) + 1)
    ]
    best, cut = [0.0], [0]
    for stop in range(1, count + 1):
        firsts = range(max(stop - longest, 0), stop)
        cheapest, first = min((best[first] + float(runs[stop - first - 1][first]), first) for first in firsts)
        best.append(cheapest)
        cut.append(first)
    return _runs(cut)


def _runs(cut: Sequence[int]) -> list[range]:
    """The runs of a shortest path; `cut` has for every place where a run may stop where it starts then."""
    runs, stop = [], len(cut) - 1
    while stop:
        runs.append(range(int(cut[stop]), stop))
        stop = int(cut[stop])
    return runs[::-1]


def _mask_tiling(load: _Load, masks: Masks, most: int) -> Tiling:
    """Masks near each other together: along a space-filling curve, cut where it is cheapest."""
    boxes, order = masks.rectangles().numpy(), curve_order(masks, range(masks.count))
    extents = []
    for axis in (0, 1):
        intervals = [make(int(boxes[i, axis]), int(boxes[i, axis] + boxes[i, 2 + axis])) for i in order]
        extents.append(load.extents(axis, intervals))
    groups = _split_boxes(extents, load.per_pixel, load.overhead, min(most, LONGEST_RUN * LONGEST_RUN // 2))
    return Tiling(groups=tuple(tuple(order[i] for i in run) for run in groups))


def _split_boxes(extents: list[tuple[Array, Array]], weights: Array, overhead: float, longest: int) -> list[range]:
    """As `_split`, for occlusions in any order: unions are taken along both axes."""
    (tops, bottoms), (lefts, rights) = extents
    count = len(tops)
    best = np.full(count + 1, np.inf)
    best[0], cut = 0.0, [0] * (count + 1)
    for first in range(count):
        bounds = [tops[first].copy(), bottoms[first].copy(), lefts[first].copy(), rights[first].copy()]
        for stop in range(first + 1, min(first + longest, count) + 1):
            last = stop - 1
            for bound, extent, union in zip(
                bounds, (tops, bottoms, lefts, rights), (np.minimum, np.maximum, np.minimum, np.maximum), strict=True
            ):
                union(bound, extent[last], out=bound)
            area = np.maximum(bounds[1] - bounds[0], 0.0) * np.maximum(bounds[3] - bounds[2], 0.0)
            cost = best[first] + overhead + (stop - first) * float(weights @ area)
            if cost < best[stop]:
                best[stop], cut[stop] = cost, first
    return _runs(cut)


def curve_order(occlusions: Occlusions, chosen: Iterable[int]) -> list[int]:
    """Some occlusions along a space-filling curve: neighbours in the sequence are neighbours in the image."""
    boxes = occlusions.rectangles().reshape(-1, 4)
    centres = (boxes[:, :2] + boxes[:, 2:] // 2).tolist()
    return sorted(chosen, key=lambda i: _interleave(*centres[i]))


def _interleave(y: int, x: int) -> int:
    """The Morton code of a point: neighbours on the curve are neighbours in the plane."""
    return sum(((y >> bit & 1) << 2 * bit + 1) | ((x >> bit & 1) << 2 * bit) for bit in range(16))


def _cut(positions: range, run: int) -> list[range]:
    return [positions[start : start + run] for start in range(0, len(positions), run)]


def _intervals(runs: Sequence[range]) -> tuple[Interval, ...]:
    return tuple(Interval(run.start, run.stop) for run in runs)


def single_tiling(occlusions: Occlusions) -> Tiling:
    """Each occlusion for itself."""
    if isinstance(occlusions, Grid):
        return Tiling(*(_intervals(_cut(range(n), 1)) for n in occlusions.shape))
    return Tiling(groups=tuple((i,) for i in range(occlusions.count)))
