"""Which occlusions a query asks for: a grid of patches, or any set of masks; and how they are gathered into tiles.

Sizes and positions are rows first. A grid has the positions y = 0, S, 2S … while y + h ≤ H (design, section 5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krypton.errors import BindError
from krypton.ir.geometry import Interval, hull, make

Size = tuple[int, int]
Region = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """Patches of one size at regular steps; with a region (top, left, height, width), only those that lie inside it."""

    image: Size
    patch: Size
    stride: Size
    region: Region | None = None

    def __post_init__(self) -> None:
        for name, size in (("patch", self.patch), ("stride", self.stride)):
            if min(size) < 1:
                raise BindError(f"{name} {size[0]}×{size[1]}: must be at least 1×1")
        if self.patch[0] > self.image[0] or self.patch[1] > self.image[1]:
            raise BindError(
                f"patch {self.patch[0]}×{self.patch[1]} is larger than the image, {self.image[0]}×{self.image[1]} "
                "(height × width): choose a smaller PATCH"
            )
        if self.region is not None:
            top, left, height, width = self.region
            if min(top, left) < 0 or min(height, width) < 1 or top + height > self.image[0] or left + width > self.image[1]:
                raise BindError(
                    f"region (top {top}, left {left}, height {height}, width {width}) does not lie inside the image, "
                    f"{self.image[0]}×{self.image[1]} (height × width)"
                )
        if not self.tops or not self.lefts:
            raise BindError(
                f"no patch of {self.patch[0]}×{self.patch[1]} at stride {self.stride[0]}×{self.stride[1]} lies inside the "
                f"region {self.region}: choose a larger region or a smaller patch or stride"
            )

    def _starts(self, axis: int) -> list[int]:
        starts = range(0, self.image[axis] - self.patch[axis] + 1, self.stride[axis])
        if self.region is None:
            return list(starts)
        low, high = self.region[axis], self.region[axis] + self.region[2 + axis]
        return [start for start in starts if low <= start and start + self.patch[axis] <= high]

    @property
    def tops(self) -> list[int]:
        return self._starts(0)

    @property
    def lefts(self) -> list[int]:
        return self._starts(1)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.tops), len(self.lefts)

    @property
    def count(self) -> int:
        return len(self.tops) * len(self.lefts)

    def intervals(self, axis: int) -> list[Interval]:
        """The occluded interval of every grid row (axis 0) or column (axis 1)."""
        return [Interval(start, start + self.patch[axis]) for start in self._starts(axis)]

    def rectangles(self) -> Tensor:
        """(rows, columns, 4) int64: top, left, height, width."""
        tops, lefts = torch.tensor(self.tops), torch.tensor(self.lefts)
        grid = torch.stack(torch.meshgrid(tops, lefts, indexing="ij"), -1)
        return torch.cat([grid, torch.tensor(self.patch).expand_as(grid)], -1)

    def __str__(self) -> str:
        rows, columns = self.shape
        text = f"patch {_by(self.patch)} stride {_by(self.stride)} grid {rows}×{columns} = {self.count:,} positions"
        return text if self.region is None else f"{text} in region {self.region}"


@dataclass(frozen=True, eq=False)
class Masks:
    """Occlusions of any shape: `masks` (n, H, W) bool, True where occluded."""

    masks: Tensor

    @property
    def image(self) -> Size:
        return int(self.masks.shape[1]), int(self.masks.shape[2])

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count,)

    @property
    def count(self) -> int:
        return int(self.masks.shape[0])

    @property
    def content_hash(self) -> str:
        packed = self.masks.to(torch.uint8).contiguous().numpy()
        return hashlib.sha256(f"{tuple(packed.shape)}".encode() + packed.tobytes()).hexdigest()[:40]

    def rectangles(self) -> Tensor:
        """(n, 4) int64: the masks' bounding boxes."""
        boxes = []
        for axis in (1, 0):
            hit = self.masks.any(2 if axis == 1 else 1).to(torch.uint8)
            size = hit.shape[1]
            first = hit.argmax(1)
            boxes.append((first, size - hit.flip(1).argmax(1) - first))
        (tops, heights), (lefts, widths) = boxes
        return torch.stack([tops, lefts, heights, widths], 1)

    def __str__(self) -> str:
        return f"{self.count:,} masks"


Occlusions = Grid | Masks

Lattice = tuple[Sequence[int], Sequence[int]]
"""The crossings of some rows and columns of a grid."""


@dataclass(frozen=True)
class OcclusionTile:
    """Occlusions computed together: their places in the query (flattened), and the box that contains them all.

    `own` are the rows and the columns of each of them.
    """

    indices: tuple[int, ...]
    rows: Interval
    columns: Interval
    own: tuple[tuple[Interval, ...], tuple[Interval, ...]]

    def part(self, places: slice) -> OcclusionTile:
        """Some of the occlusions, on the same box."""
        return OcclusionTile(self.indices[places], self.rows, self.columns, (self.own[0][places], self.own[1][places]))


@dataclass(frozen=True)
class Tiling:
    """How occlusions are gathered: for grids, groups of rows × groups of columns; for masks, lists of masks."""

    rows: tuple[Interval, ...] = ()
    columns: tuple[Interval, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    def tiles(self, occlusions: Occlusions, lattice: Lattice | None = None) -> list[OcclusionTile]:
        """All tiles, in reading order. With a `lattice` the runs are of its rows and columns, not of all of the grid's."""
        if isinstance(occlusions, Masks):
            boxes = occlusions.rectangles()
            return [tile_around(group, boxes) for group in self.groups]
        every_row, every_column, width = occlusions.intervals(0), occlusions.intervals(1), occlusions.shape[1]
        rows, columns = lattice or (range(len(every_row)), range(len(every_column)))
        return [
            OcclusionTile(
                tuple(rows[y] * width + columns[x] for y in range(*r) for x in range(*c)),
                Interval(every_row[rows[r.start]].start, every_row[rows[r.stop - 1]].stop),
                Interval(every_column[columns[c.start]].start, every_column[columns[c.stop - 1]].stop),
                (
                    tuple(every_row[rows[y]] for y in range(*r) for _ in range(*c)),
                    tuple(every_column[columns[x]] for _ in range(*r) for x in range(*c)),
                ),
            )
            for r in self.rows
            for c in self.columns
        ]


def tile_around(group: Sequence[int], boxes: Tensor) -> OcclusionTile:
    """A tile of any occlusions, from the rectangles (n, 4) of all."""
    rectangles = boxes[list(group)].tolist()
    own = tuple(tuple(make(box[axis], box[axis] + box[2 + axis]) for box in rectangles) for axis in (0, 1))
    return OcclusionTile(tuple(group), hull(*own[0]), hull(*own[1]), (own[0], own[1]))


def _by(size: Size) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"
