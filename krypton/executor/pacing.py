"""Pacing: how far a run goes. All the way, or as far as a deadline lets it, by the speed that it has had so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from krypton.ir.occlusions import OcclusionTile

_MARGIN, _SLACK = 0.02, 0.04
"""Shares of the whole time: how much earlier than the deadline the end is aimed at; how much later a tile is given up."""

_CAUTION = 1.15  # times longer than predicted a tile may take
_GROWTH = 4  # times larger than any before it a tile may be: nothing is known of its speed
_REMEMBERED = 12  # tiles, as boxes grow and shrink


class Pacing(Protocol):
    """Asked by an engine: `tiles` gives on those that are to be computed, made smaller if need be, and may end early. `ran` and
    `finished` are told how long the trunk took for the occlusions of a tile, and the head for those gathered."""

    def tiles(self, tiles: Iterable[OcclusionTile]) -> Iterator[OcclusionTile]: ...
    def ran(self, count: int, seconds: float) -> None: ...
    def finished(self, count: int, seconds: float) -> None: ...


class Unhurried:
    """Everything."""

    def tiles(self, tiles: Iterable[OcclusionTile]) -> Iterator[OcclusionTile]:
        return iter(tiles)

    def ran(self, count: int, seconds: float) -> None: ...

    def finished(self, count: int, seconds: float) -> None: ...


UNHURRIED = Unhurried()


class Clock:
    """`seconds` from `started` on (of `time.perf_counter`; now, unless said), a part of the time of so many `images`.

    `reserve` is how long it takes from the last batch to the answer. `stopped`: there is no time for more, or no need.
    """

    def __init__(self, seconds: float, started: float | None = None, images: int = 1) -> None:
        self.seconds, self.images = seconds, images
        self.started = time.perf_counter() if started is None else started
        self.reserve = 0.0
        self.stopped = False
        self._begun = False
        self._waiting, self._head_takes = 0, 0.0  # occlusions that the head has not seen yet, and its seconds for them
        self._trunk, self._head = _Speed(), _Speed()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds that can be spent on computing."""
        return self.seconds * (1 - _MARGIN) - self.reserve - self.spent

    def predicted(self, count: int) -> float:
        """Seconds for so many occlusions more, in tiles as large as those so far; 0 when nothing is known."""
        return self._trunk.per_occlusion * count + self._head.predicted(count)

    @property
    def alone(self) -> float:
        """Seconds for an occlusion in a tile of its own."""
        return self._trunk.predicted(1)

    def tiles(self, tiles: Iterable[OcclusionTile]) -> Iterator[OcclusionTile]:
        self._begun = True
        for tile in tiles:
            start, total = 0, len(tile.indices)
            while start < total:
                count = self._affordable(total - start)
                if count == 0:
                    self.stopped = True
                    return
                yield tile if count == total else tile.part(slice(start, start + count))
                start += count

    def ran(self, count: int, seconds: float) -> None:
        self._trunk.note(count, seconds)
        self._gathered(self._waiting + count)

    def finished(self, count: int, seconds: float) -> None:
        self._head.note(count, seconds)
        self._gathered(max(self._waiting - count, 0))

    def cancelled(self) -> bool:
        """Whether the tile that runs takes too long, and is to be given up; once, so that what was gathered can be finished."""
        if not self._begun or self.stopped or self.left - self._head_takes >= -_SLACK * self.seconds:
            return False
        self.stopped = True
        return True

    def _gathered(self, waiting: int) -> None:
        self._waiting, self._head_takes = waiting, self._head.predicted(waiting)

    def _affordable(self, most: int) -> int:
        """How many occlusions, of at most so many, a tile may have."""
        left = self.left
        if not self._trunk.largest:
            return int(left > 0)
        count = min(most, _GROWTH * self._trunk.largest)
        while count and self._needed(count) > left:
            count = count * 3 // 4
        return count

    def _needed(self, count: int) -> float:
        return _CAUTION * self._trunk.predicted(count) + self._head.predicted(self._waiting + count)


class _Speed:
    """Seconds by the number of occlusions: a line through what was seen last."""

    def __init__(self) -> None:
        self.largest = 0
        self._seen: list[tuple[int, float]] = []

    def note(self, count: int, seconds: float) -> None:
        self.largest = max(self.largest, count)
        self._seen = [*self._seen[1 - _REMEMBERED :], (count, seconds)]

    @property
    def per_occlusion(self) -> float:
        """On average, in what was seen last."""
        counts, seconds = (sum(column) for column in zip(*self._seen, strict=True)) if self._seen else (0, 0.0)
        return seconds / max(counts, 1)

    def predicted(self, count: int) -> float:
        if not self._seen or not count:
            return 0.0
        counts, seconds = np.array(self._seen).T
        spread = counts - counts.mean()
        slope = float(spread @ seconds / (spread @ spread)) if spread.any() else float("nan")
        start = float(seconds.mean()) - slope * float(counts.mean())
        if not slope >= 0:  # of one size, or nothing to be seen but noise: half of it, at least, is paid per occlusion
            share = min(count / float(counts.mean()), 1e9)
            return float(seconds.mean()) * (0.5 + 0.5 * share)
        if start < 0:
            return float(seconds.sum() / counts.sum()) * count
        return start + slope * count
