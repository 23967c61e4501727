"""Is a query worth waiting for the compiler, the first time that a machine runs Krypton?"""

from __future__ import annotations

from krypton.ir.plan import QueryPlan

COMPILING, LEAST = 5.0, 1.0
"""Seconds that compiling the kernels takes (4.4 on two cores), and that are expected to be left in any case."""

SAVED = 0.4
"""Share of a query's time that compiled kernels save, cautiously: from 49 to 196 positions of ResNet18 take 1.3 s without them
and 0.5 s with them (`python -m benchmarks.first`)."""


def worth_waiting(plan: QueryPlan, spent: float) -> bool:
    """For a plan without compiled kernels, when the compiler has been at work for so many seconds."""
    if plan.tensor is None:
        return False
    seconds = sum(cost.milliseconds for cost in plan.tensor.costs.values()) * plan.computed / 1e3
    return SAVED * seconds > max(COMPILING - spent, LEAST)
