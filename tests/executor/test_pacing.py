"""Clocks: tiles go on while there is time, smaller ones towards the end, none after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from krypton.executor.pacing import Clock, Unhurried
from krypton.ir.occlusions import Grid, OcclusionTile, tile_around

GRID = Grid((64, 64), (4, 4), (2, 2))
BOXES = GRID.rectangles().reshape(-1, 4)
TILES = [tile_around(range(start, start + 20), BOXES) for start in range(0, 900, 20)]


class Time:
    """What `perf_counter` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def run(clock: Clock, time: Time, trunk: Callable[[int], float], head: Callable[[int], float] = lambda n: 0.0) -> list[int]:
    """The sizes of all tiles of a run whose parts take so many seconds by the number of occlusions; the head sees them at
    last."""
    sizes = []
    for tile in clock.tiles(TILES):
        size = len(tile.indices)
        sizes.append(size)
        time.now += trunk(size)
        clock.ran(size, trunk(size))
    time.now += head(sum(sizes))
    clock.finished(sum(sizes), head(sum(sizes)))
    return sizes


def test_all_tiles_go_on_when_there_is_time(time: Time) -> None:
    clock = Clock(10.0)
    sizes = run(clock, time, lambda n: 0.001 * n)
    assert sum(sizes) == 900
    assert sizes[:3] == [1, 4, 15]  # the first ones show how long it takes
    assert not clock.stopped
    assert list(Unhurried().tiles(TILES)) == TILES


@pytest.mark.parametrize(("start", "each"), [(0.0, 0.02), (0.05, 0.01), (0.2, 0.001)])
def test_runs_end_just_before_the_deadline(start: float, each: float, time: Time) -> None:
    clock = Clock(3.0)
    sizes = run(clock, time, lambda n: start + each * n)
    assert clock.stopped
    assert 2.2 < clock.spent <= 3.0
    assert sum(sizes) < 900
    assert not list(clock.tiles(TILES))


def test_what_comes_after_the_last_tile_has_its_time(time: Time) -> None:
    clock = Clock(3.0)
    clock.reserve = 0.5
    run(clock, time, lambda n: 0.01 * n, lambda n: 0.2)
    clock.started, clock.stopped = time.now, False
    run(clock, time, lambda n: 0.01 * n, lambda n: 0.2)
    assert clock.spent <= 2.5


def test_a_tile_that_takes_far_longer_than_it_should_is_given_up_once(time: Time) -> None:
    clock = Clock(1.0)
    run(clock, time, lambda n: 0.001)
    clock.started, clock.stopped = time.now, False
    assert not clock.cancelled()
    time.now += 1.03
    assert clock.cancelled()
    assert not clock.cancelled()
    assert clock.stopped


def test_before_anything_is_known_one_position_is_tried(time: Time) -> None:
    clock = Clock(1.0)
    assert [len(tile.indices) for tile, _ in zip(clock.tiles(TILES), range(1), strict=False)] == [1]
    time.now += 2
    assert not list(clock.tiles(TILES))


def test_noise_does_not_make_small_tiles_free(time: Time) -> None:
    """Times that fall with the size, as they may by chance, are no reason to expect nothing."""
    clock = Clock(100.0)
    generator = torch.Generator().manual_seed(0)
    for size in (20, 18, 16, 20):
        clock.ran(size, 1.0 + float(torch.rand(1, generator=generator)) - size / 20)
    assert clock.predicted(20) > 0.1


def test_every_position_comes_once(time: Time) -> None:
    seen: list[int] = []
    clock = Clock(50.0)
    for tile in clock.tiles(TILES):
        assert isinstance(tile, OcclusionTile)
        seen += tile.indices
        clock.ran(len(tile.indices), 0.01)
    assert seen == list(range(900))
