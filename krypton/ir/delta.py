"""A delta at run time: the change of one value for a batch of occlusions, stored on a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from krypton.ir.geometry import Interval
from krypton.ir.graph import Function


class Box(NamedTuple):
    """Rows and columns, in the coordinates of one value. Empty when either axis is."""

    rows: Interval
    columns: Interval

    @property
    def empty(self) -> bool:
        return self.rows.empty or self.columns.empty

    @property
    def area(self) -> int:
        return self.rows.size * self.columns.size

    def __str__(self) -> str:
        return f"{self.rows.size}×{self.columns.size}"


@dataclass(slots=True)
class Delta:
    """`data` (B, C, h, w), channels innermost in memory, its first pixel at (`top`, `left`).

    Invariant I1: outside `field` the delta is zero, also where `data` reaches further. Invariant I2: that holds beyond the
    border of the map as well, so that padding needs no special case. `fields` (B, 4) int64, when
    given: rows and columns (top, bottom, left, right) outside of which the delta of one occlusion is zero, the field being that
    of all together.
    """

    data: Tensor
    top: int
    left: int
    field: Box
    fields: Tensor | None = None

    @property
    def rows(self) -> Interval:
        return Interval(self.top, self.top + self.data.shape[2])

    @property
    def columns(self) -> Interval:
        return Interval(self.left, self.left + self.data.shape[3])

    def window(self, rows: Interval, columns: Interval) -> Tensor:
        """The delta on a window, zero-extended: a slice where the data reaches, a padded copy elsewhere."""
        mine = self.rows, self.columns
        if (rows, columns) == mine:
            return self.data
        inside = [Interval(max(w.start, m.start), min(w.stop, m.stop)) for w, m in zip((rows, columns), mine, strict=True)]
        if inside[0].empty or inside[1].empty:
            return self.data.new_zeros((*self.data.shape[:2], rows.size, columns.size))
        part = self.data[
            :,
            :,
            inside[0].start - self.top : inside[0].stop - self.top,
            inside[1].start - self.left : inside[1].stop - self.left,
        ]
        if inside == [rows, columns]:
            return part
        return F.pad(
            part,
            (
                inside[1].start - columns.start,
                columns.stop - inside[1].stop,
                inside[0].start - rows.start,
                rows.stop - inside[0].stop,
            ),
        )

    def on_field(self) -> Tensor:
        """Just the field, without margins."""
        return self.window(self.field.rows, self.field.columns)

    def cleared(self) -> Delta:
        """The part on the field, to be written by somebody; the margins are set to zero."""
        if (self.rows, self.columns) == self.field:
            return self
        self.data.zero_()
        return Delta(self.on_field(), self.field.rows.start, self.field.columns.start, self.field)


@dataclass(slots=True)
class Deferred:
    """The delta f(base + scale·Δ) − f(base), to be made by its only reader as it reads: one pass over memory less.

    `source` is Δ, `base` the whole view (1, C, H, W) that f is applied to, `scale` (C,) or None.
    """

    source: Delta
    function: Function
    base: Tensor
    scale: Tensor | None

    @property
    def field(self) -> Box:
        return self.source.field


@dataclass(slots=True)
class Gated:
    """A whole map, or a change, times a gate (B, C), to be multiplied by its only reader as it reads."""

    source: Delta
    gate: Tensor
