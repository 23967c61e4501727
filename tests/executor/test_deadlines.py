"""Runs with a deadline on a clock of our own: tiles take a fixed time each, whatever the machine does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.judge import settings_of
from support.small import captured_model, image_and_fill

from krypton.errors import ExecutionError
from krypton.executor import execute
from krypton.executor.engine import Batch
from krypton.executor.pacing import Clock
from krypton.executor.program import Program
from krypton.ir.occlusions import Grid
from krypton.ir.plan import Approximation, QueryPlan
from krypton.planner.optimizer import plan_query

FINE = Grid((19, 16), (4, 3), (1, 1))


def planned(approximation: Approximation, model: str = "residual") -> QueryPlan:
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    return plan_query(captured_model(model), FINE, mode="approximate", approximation=approximation, settings=settings)


class Tiles(Clock):
    """A hundredth of a second for every tile."""

    def __init__(self, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran_through = 0
        super().__init__(seconds)
        trunk = Program.trunk

        def counted(*given: Any) -> Any:
            self.ran_through += 1
            return trunk(*given)

        monkeypatch.setattr(Program, "trunk", counted)

    @property
    def spent(self) -> float:
        return 0.01 * self.ran_through


def batches(plan: QueryPlan, model: str = "residual", **options: Any) -> list[Batch]:
    weights = captured_model(model).weights
    return list(execute(plan, *image_and_fill(), weights=weights, settings=settings_of(), **options))


@pytest.mark.parametrize("freeze", [False, True])
def test_measuring_where_to_cut_keeps_the_deadline(freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(Approximation(within=1.0, keep=0.99, freeze=freeze, quality_share=0.3), "gated")
    clock = Tiles(1.0, monkeypatch)
    with contextlib.suppress(ExecutionError):  # where statistics are frozen it is too short for any position
        batches(plan, "gated", clock=clock)
    assert clock.spent <= 1.0


def after(asked: int) -> Callable[[], bool]:
    """Cancelled when it was asked so often."""
    left = iter(range(asked))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("asked", [0, 5, 60])
@pytest.mark.parametrize("options", [{}, {"keep": 0.9}, {"tau": 0.5}])
def test_a_run_that_is_cancelled_ends_where_it_is(asked: int, options: dict[str, float]) -> None:
    plan = planned(Approximation(within=100.0, quality_share=0.05, **options))
    found = batches(plan, cancelled=after(asked))
    computed = torch.cat([batch.indices for batch in found]) if found else torch.tensor([])
    assert "interpolate" not in {batch.stage for batch in found}
    assert len(computed.unique()) < FINE.count
