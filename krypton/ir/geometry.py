"""Fields and windows along one axis, in whole numbers (design, section 2; Krypton paper, section 3.2).

A *field* is the half-open interval of an axis outside of which a delta is zero. Boxes are pairs of intervals, rows and
columns, and every rule here works on one axis at a time. Nothing here knows of tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Interval(NamedTuple):
    """Half-open `[start, stop)`. Every interval with `stop <= start` is empty and is written `EMPTY`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return max(self.stop - self.start, 0)

    @property
    def empty(self) -> bool:
        return self.stop <= self.start

    def shift(self, by: int) -> Interval:
        return self if self.empty else Interval(self.start + by, self.stop + by)

    def clip(self, size: int) -> Interval:
        """The part inside `[0, size)`."""
        return make(max(self.start, 0), min(self.stop, size))

    def contains(self, other: Interval) -> bool:
        return other.empty or (self.start <= other.start and other.stop <= self.stop)


EMPTY = Interval(0, 0)


def make(start: int, stop: int) -> Interval:
    """An interval, with all empty ones made equal to `EMPTY`."""
    return Interval(start, stop) if start < stop else EMPTY


def hull(*intervals: Interval) -> Interval:
    """The smallest interval that contains all of them; empty ones count for nothing."""
    full = [interval for interval in intervals if not interval.empty]
    if not full:
        return EMPTY
    return Interval(min(i.start for i in full), max(i.stop for i in full))


@dataclass(frozen=True)
class Window:
    """How a window operator (convolution, pooling) reads one axis.

    `extent` is the dilated kernel size K, `padding` the leading padding P (negative when the operator crops), `size` the
    length O of the output axis.
    """

    extent: int
    stride: int
    padding: int
    size: int

    def field(self, changed: Interval) -> Interval:
        """Outputs that can see a changed input: tight for dilation 1, and containing the truth otherwise.

        start' = max(ceil((start + P - K + 1) / S), 0), stop' = min(floor((stop - 1 + P) / S) + 1, O)
        """
        if changed.empty:
            return EMPTY
        start = -((changed.start + self.padding - self.extent + 1) // -self.stride)
        stop = (changed.stop - 1 + self.padding) // self.stride + 1
        return make(start, stop).clip(self.size)

    @property
    def centre(self) -> tuple[float, float]:
        """(a, b): output o reads around a·o + b of the input."""
        return float(self.stride), (self.extent - 1) / 2 - self.padding

    def read(self, outputs: Interval) -> Interval:
        """Inputs that the given outputs read; may reach outside the axis, where the padding lives."""
        if outputs.empty:
            return EMPTY
        start = outputs.start * self.stride - self.padding
        return Interval(start, (outputs.stop - 1) * self.stride - self.padding + self.extent)


class Projection(NamedTuple):
    """Where the occluded pixels of an axis lie in a map: the outputs whose windows are centred on the first and on the last
    of them, between pixels perhaps."""

    first: float
    last: float


@dataclass(frozen=True)
class Cut:
    """How far around the projection of what is occluded a change is kept, along one axis; what lies beyond is given up.

    `before` the projection's first and `after` its last place, in pixels; negative: inside. `slide`: at the border of the map
    what is kept is moved inside, so that it stays as large.
    """

    before: float
    after: float
    slide: bool = False

    def kept(self, projection: Projection, size: int) -> Interval:
        """The part of an axis of that size; it grows with the projection."""
        start = math.floor(projection.first - self.before + 0.5)
        stop = math.floor(projection.last + self.after + 0.5) + 1
        if self.slide:
            start, stop = start - max(stop - size, 0), stop + max(-start, 0)
        return make(start, stop).clip(size)

    def apply(self, field: Interval, projection: Projection, size: int) -> Interval:
        """The part of a field that is kept; where it would be none, the nearest pixel."""
        kept = self.kept(projection, size)
        part = make(max(field.start, kept.start), min(field.stop, kept.stop))
        if not part.empty or field.empty:
            return part
        middle = math.floor((projection.first + projection.last) / 2 + 0.5)
        nearest = min(max(middle, field.start), field.stop - 1)
        return Interval(nearest, nearest + 1)


def dilated(kernel: int, dilation: int) -> int:
    """The extent of a dilated kernel: d·(k − 1) + 1."""
    return dilation * (kernel - 1) + 1


def split_read(field: Interval, read: Interval) -> tuple[int, Interval]:
    """How a convolution reads a field zero-extended to `read`: symmetric padding, and the span to have in memory.

    What can be left to the convolution's own padding is: libraries skip padded taps, and nothing need be written for them.
    """
    padding = max(min(field.start - read.start, read.stop - field.stop), 0)
    return padding, Interval(read.start + padding, read.stop - padding)
