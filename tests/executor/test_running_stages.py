"""Approximate plans at work: what is computed is exact, nothing twice, the rest interpolated where it lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import pytest
import torch
from support.judge import Oracle, settings_of
from support.processor import needs_pairs
from support.small import captured_model, image_and_fill, model
from torch import Tensor

from krypton.errors import ExecutionError
from krypton.executor import Batch, execute
from krypton.executor.interpolation import interpolated
from krypton.executor.stages import evenly_drawn, run_stages
from krypton.ir.occlusions import Grid, OcclusionTile
from krypton.ir.plan import Approximation, QueryPlan
from krypton.planner.optimizer import plan_query

FINE = Grid((19, 16), (4, 3), (1, 1))
DRILL = Approximation(drilldown=0.1, speedup=3.0, quality_share=0.05, seed=1)


def planned(approximation: Approximation = DRILL, captured: bool = True) -> QueryPlan:
    graph = captured_model("residual") if captured else None
    settings = settings_of({"disabled_rules": "full_when_cheaper"})
    return plan_query(graph, FINE, mode="approximate", approximation=approximation, settings=settings)


class Known:
    """An engine that looks answers up, and keeps account."""

    precision = None

    def __init__(self, logits: Tensor, most: int = 10**9) -> None:
        self.base_logits, self._logits, self._left = torch.zeros(logits.shape[1]), logits, most
        self.asked: list[tuple[int, bool]] = []

    def run(self, tiles: Sequence[OcclusionTile], *, exact: bool = False) -> Iterator[Batch]:
        for tile in tiles:
            if self._left <= 0:
                return
            self._left -= 1
            self.asked += [(index, exact) for index in tile.indices]
            yield Batch(torch.tensor(tile.indices), self._logits[list(tile.indices)])


def filled(plan: QueryPlan, logits: Tensor) -> tuple[list[Batch], Known, Tensor]:
    """All batches, the engine, and the logits of the map that they make."""
    engine, result = Known(logits), torch.full_like(logits, torch.nan)
    batches = list(run_stages(plan, engine, lambda logits: logits[:, :1]))
    for batch in batches:
        result[batch.indices] = batch.logits
    return batches, engine, result


def among(positions: Iterable[int]) -> Tensor:
    """(n,) bool: which positions these are."""
    known = torch.zeros(FINE.count, dtype=torch.bool)
    known[list(positions)] = True
    return known


@pytest.fixture
def answers() -> Tensor:
    return torch.randn(FINE.count, 3, generator=torch.Generator().manual_seed(0))


def test_no_position_is_computed_twice_but_those_held_out(answers: Tensor) -> None:
    plan = planned()
    batches, engine, result = filled(plan, answers)
    rough = [index for index, exact in engine.asked if not exact]
    held_out = [index for index, exact in engine.asked if exact]
    assert len(rough) == len(set(rough))
    assert len(held_out) == len(set(held_out)) == plan.stages[2].count
    assert not set(rough) & set(held_out)
    assert torch.isfinite(result).all()
    computed = torch.tensor(sorted(rough + held_out))
    assert torch.equal(result[computed], answers[computed])
    assert {batch.stage for batch in batches} == {"coarse", "refine", "interpolate", "hold_out"}
    assert all(batch.exact == (batch.stage != "interpolate") for batch in batches)


def test_the_share_with_the_lowest_interpolated_score_is_refined(answers: Tensor) -> None:
    plan = planned()
    _, engine, _ = filled(plan, answers)
    coarse = plan.stages[0]
    width = FINE.shape[1]
    crossings = {row * width + column for row in coarse.rows for column in coarse.columns}
    between = interpolated(answers, FINE, among(crossings))[:, 0]
    lowest = set(between.argsort(stable=True)[: round(0.1 * FINE.count)].tolist())
    assert {index for index, exact in engine.asked if not exact} == crossings | lowest


@pytest.mark.parametrize("quality", [0.0, 0.05])
@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("captured", [True, False])
def test_what_is_not_computed_is_interpolated_between_all_that_is(
    captured: bool, share: float, quality: float, answers: Tensor
) -> None:
    plan = planned(Approximation(drilldown=share, speedup=4.0, quality_share=quality), captured)
    batches, engine, result = filled(plan, answers)
    computed = {index for index, _ in engine.asked}
    assert torch.equal(result, interpolated(answers, FINE, among(computed)))
    assert any(batch.stage == "hold_out" for batch in batches) == (quality > 0)


def test_what_is_thought_of_positions_held_out_knows_of_none_of_them(answers: Tensor) -> None:
    batches, engine, _ = filled(planned(), answers)
    others = interpolated(answers, FINE, among(index for index, exact in engine.asked if not exact))
    held_out = [batch for batch in batches if batch.thought is not None]
    assert {batch.stage for batch in held_out} == {"hold_out"}
    assert len(held_out) > 1  # the later ones know nothing of the first, either
    for batch in held_out:
        assert torch.equal(batch.thought, others[batch.indices])


def test_a_run_that_is_stopped_goes_no_further(answers: Tensor) -> None:
    plan = planned()
    tiles = len(plan.stages[0].tiling.tiles(FINE, (plan.stages[0].rows, plan.stages[0].columns)))
    for most in range(tiles):
        batches = list(run_stages(plan, Known(answers, most), lambda logits: logits[:, :1]))
        assert [batch.stage for batch in batches] == ["coarse"] * most


def test_positions_are_drawn_evenly_and_by_seed() -> None:
    candidates = list(range(100, 200))
    drawn = evenly_drawn(candidates, 10, seed=3)
    assert [index // 10 for index in drawn] == list(range(10, 20))
    assert drawn == evenly_drawn(candidates, 10, seed=3) != evenly_drawn(candidates, 10, seed=4)
    assert evenly_drawn(candidates, 1000, seed=0) == candidates
    assert all(len(set(evenly_drawn(candidates, count, seed))) == count for count in range(101) for seed in range(5))
    assert evenly_drawn([], 3, seed=0) == []


@pytest.mark.parametrize("captured", [True, False])
def test_computed_positions_are_exact(captured: bool) -> None:
    image, fill = image_and_fill()
    plan = planned(captured=captured)
    weights = captured_model("residual").weights
    module = model("residual")
    logits, exact = torch.full((FINE.count, 5), torch.nan), torch.zeros(FINE.count, dtype=torch.bool)
    for batch in execute(plan, image, fill, weights=weights, module=module, settings=settings_of()):
        logits[batch.indices], exact[batch.indices] = batch.logits, torch.tensor(batch.exact)
    oracle = Oracle(module, image, fill, FINE)
    assert 0.1 < exact.float().mean() < 0.5
    error = (logits - oracle.reference).abs() / oracle.allowed
    assert error[exact].max() <= 1
    assert torch.isfinite(logits).all()
    assert error[~exact].max() > 1  # or there would be nothing to approximate


@needs_pairs
def test_low_precision_is_not_taken_for_exact() -> None:
    plan = planned(Approximation(drilldown=0.0, speedup=4.0, quality_share=0.1))
    assert plan.tensor is not None
    convolutions = {n.id for n in plan.tensor.graph if n.op == "conv" and n.attrs["groups"] == 1 and n.mode == "delta"}
    lowered = [dataclasses.replace(n, kernel="bfloat16") if n.id in convolutions else n for n in plan.tensor.graph]
    graph = plan.tensor.graph.with_nodes(lowered)
    plan = dataclasses.replace(plan, tensor=dataclasses.replace(plan.tensor, graph=graph))
    image, fill = image_and_fill()
    batches = list(execute(plan, image, fill, weights=captured_model("residual").weights))
    assert {batch.stage: batch.exact for batch in batches} == {"coarse": False, "interpolate": False, "hold_out": True}
    held_out = next(batch for batch in batches if batch.stage == "hold_out")
    oracle = Oracle(model("residual"), image, fill, FINE)
    error = (held_out.logits - oracle.reference[held_out.indices]).abs() / oracle.allowed
    assert error.max() <= 1


def test_tiles_are_the_stages_own() -> None:
    plan, (image, fill) = planned(), image_and_fill()
    assert plan.tensor is not None
    tiles = plan.tensor.tiling.tiles(FINE)[:1]
    with pytest.raises(ExecutionError, match="chooses its tiles itself"):
        execute(plan, image, fill, weights=captured_model("residual").weights, tiles=tiles)
