"""Clocks: how long something takes once, and in a steady state."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ENOUGH = 0.4
"""Seconds after which a measurement says enough about the steady state."""


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def clocked(work: Callable[[], object]) -> float:
    return timed(work)[1]


def steady(work: Callable[[], object]) -> float:
    """Seconds per call. A long first call counts; after a short one, which only warms up, calls go on for long enough."""
    first = clocked(work)
    if first >= ENOUGH:
        return first
    total, calls = 0.0, 0
    while total < ENOUGH:
        total, calls = total + clocked(work), calls + 1
    return total / calls
