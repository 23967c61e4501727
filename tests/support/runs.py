"""Runs of plans for the small models: planned in tiles, started, gathered."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from krypton.executor import Execution, execute
from krypton.ir.geometry import Interval
from krypton.ir.occlusions import Tiling
from krypton.ir.plan import QueryPlan
from krypton.planner.optimizer import plan_query
from support.judge import settings_of
from support.small import GRID, captured_model, image_and_fill

PAIRS = Tiling(rows=(Interval(0, 2), Interval(2, 4)), columns=(Interval(0, 1), Interval(1, 4)))


def planned(name: str = "residual", tiling: Tiling | None = None, **values: object) -> QueryPlan:
    plan = plan_query(captured_model(name), GRID, settings=settings_of({"disabled_rules": "full_when_cheaper"} | values))
    if tiling is None:
        return plan
    assert plan.tensor is not None
    return replace(plan, tensor=replace(plan.tensor, tiling=tiling, head_batch=1))


def started(plan: QueryPlan, name: str = "residual", **options: object) -> Execution:
    return execute(plan, *image_and_fill(), weights=captured_model(name).weights, **options)  # type: ignore[arg-type]


def gathered(run: Execution) -> Tensor:
    """The logits (n, K) of all occlusions, in the query's order."""
    batches = list(run)
    return torch.cat([batch.logits for batch in batches])[torch.cat([batch.indices for batch in batches]).argsort()]
