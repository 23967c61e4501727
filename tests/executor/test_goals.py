"""Plans with a goal at work: the ladder stops at the promised rung, nothing is computed twice, its end is the exact map."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from support.judge import settings_of
from support.small import captured_model, image_and_fill
from torch import Tensor

from krypton.errors import BindError, ExecutionError
from krypton.executor import Batch, execute, reuse
from krypton.executor.engine import Seen
from krypton.executor.goals import Promise, run_goal
from krypton.executor.interpolation import interpolated
from krypton.executor.pacing import UNHURRIED, Pacing
from krypton.executor.reuse import ReusingEngine
from krypton.ir.occlusions import Grid, Masks, OcclusionTile
from krypton.ir.plan import Approximation, QueryPlan
from krypton.planner.goals import FEW, HELD_OUT, KEEPS, goal_stages
from krypton.planner.optimizer import plan_query
from krypton.planner.tiles import gathered

FINE = Grid((19, 16), (4, 3), (1, 1))
GOAL = Approximation(ssim=0.9, quality_share=0.02, seed=1)
NEAR_ENOUGH, NOT_NEAR = 0.99, 0.5


def planned(goal: Approximation = GOAL, captured: bool = True) -> QueryPlan:
    graph = captured_model("residual") if captured else None
    settings = settings_of({"disabled_rules": "full_when_cheaper", "batch": 4})
    return plan_query(graph, FINE, mode="approximate", approximation=goal, settings=settings)


class Known:
    """An engine that looks answers up, gives cut ones a number of its own, and keeps account; it stops after `most` tiles."""

    precision = None

    def __init__(self, logits: Tensor, most: int = 10**9) -> None:
        self.base_logits, self.seen, self._logits, self._left = torch.zeros(logits.shape[1]), Seen(), logits, most
        self.asked: list[int] = []
        self.keep: float | None = None
        self.exact = False

    def run(self, tiles: Sequence[OcclusionTile], *, exact: bool = False, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        for tile in tiles:
            if self._left <= 0:
                return
            self._left -= 1
            logits = self._logits[list(tile.indices)]
            if exact:
                self.asked += tile.indices
            yield Batch(torch.tensor(tile.indices), logits if exact else logits + 1, exact=exact)

    def measure(self, tiles: Sequence[OcclusionTile]) -> Iterator[Batch]:
        for tile in tiles:
            if self._left <= 0:
                return
            self._left -= 1
            yield Batch(torch.tensor(tile.indices), self._logits[list(tile.indices)])

    def settled(self, plan: QueryPlan, keep: float) -> QueryPlan:
        self.keep = keep
        return plan


def filled(
    promise: Promise,
    keeps: Sequence[float] = (),
    most: int = 10**9,
    reused: Tensor | None = None,
    engine: Known | None = None,
) -> tuple[Tensor, Tensor, Known]:
    """The logits of the map and which are exact, as the session would note them, and the engine."""
    engine = engine or Known(ANSWERS, most)
    result, exact = torch.full_like(ANSWERS, torch.nan), torch.zeros(FINE.count, dtype=torch.bool)
    for batch in run_goal(planned(captured=False), engine, lambda logits: logits[:, :1], promise, keeps, reused):
        result[batch.indices], exact[batch.indices] = batch.logits, batch.exact
    return result, exact, engine


ANSWERS = torch.randn(FINE.count, 3, generator=torch.Generator().manual_seed(0))


def at(call: int) -> tuple[Callable[..., float], list[tuple[Tensor, ...]]]:
    """A promise that is kept from so manieth time on that it is asked; and what it was asked."""
    asked: list[tuple[Tensor, ...]] = []

    def promise(*question: Tensor) -> float:
        asked.append(question)
        return NEAR_ENOUGH if len(asked) > call else NOT_NEAR

    return promise, asked


@pytest.mark.parametrize("call", range(4))
def test_the_ladder_stops_at_the_rung_that_promises_the_goal(call: int) -> None:
    promise, asked = at(call)
    result, exact, engine = filled(promise)
    assert len(asked) == call + 1
    assert torch.isfinite(result).all()
    assert 0 < int(exact.sum()) < FINE.count
    assert torch.equal(result, interpolated(ANSWERS, FINE, exact))  # those held out are exact by then
    assert len(engine.asked) == len(set(engine.asked)) == int(exact.sum())
    assert f"{int(asked[-1][1].sum()) - len(asked[-1][2]):,} positions computed" in engine.seen.goal


def test_what_judges_a_rung_are_positions_that_it_has_not_computed() -> None:
    promise, asked = at(9)
    filled(promise)
    for logits, exact, places, thought in asked:
        assert exact[places].all()
        assert torch.equal(logits[places], ANSWERS[places])
        assert not torch.equal(thought, ANSWERS[places])
        assert torch.equal(logits[exact], ANSWERS[exact])
    held = [set(places.tolist()) for _, _, places, _ in asked]
    assert len(held[0]) == HELD_OUT
    assert all(later <= earlier for earlier, later in itertools.pairwise(held))


@pytest.mark.parametrize(("said", "why"), [(NOT_NEAR, "nothing less promised it"), (None, "too flat for SSIM")])
def test_without_a_promise_the_map_is_exact(said: float | None, why: str) -> None:
    result, exact, engine = filled(lambda *question: said, KEEPS)
    assert exact.all()
    assert torch.equal(result, ANSWERS)
    assert why in engine.seen.goal
    assert sorted(engine.asked) == list(range(FINE.count))  # once each


def test_a_little_more_than_the_goal_must_be_promised() -> None:
    _, exact, _ = filled(lambda *question: 0.91)
    assert exact.all()
    _, exact, _ = filled(lambda *question: 0.92)
    assert not exact.all()


@pytest.mark.parametrize("number", range(len(KEEPS)))
def test_the_last_rung_is_cut_as_hard_as_is_good_enough(number: int) -> None:
    rungs = sum(stage.kind in ("coarse", "refine") for stage in planned(captured=False).stages)
    promise, asked = at(rungs + number)
    result, exact, engine = filled(promise, KEEPS)
    assert engine.keep == KEEPS[number]
    assert f"with keep {KEEPS[number]:g}" in engine.seen.goal
    assert torch.equal(result[exact], ANSWERS[exact])
    assert torch.equal(result[~exact], ANSWERS[~exact] + 1)
    held = asked[-1][2]
    assert exact[held].all()
    assert torch.equal(asked[-1][3], ANSWERS[held] + 1)


def test_what_is_at_hand_is_never_cut() -> None:
    rungs = sum(stage.kind in ("coarse", "refine") for stage in planned(captured=False).stages)
    _, without, _ = filled(at(rungs)[0], KEEPS)
    at_hand = (~without).nonzero()[::2, 0]
    promise, asked = at(rungs)
    result, exact, _ = filled(promise, KEEPS, reused=at_hand)
    assert exact[at_hand].all()
    assert torch.equal(result[exact], ANSWERS[exact])
    assert not exact.all()
    assert len(asked[-1][2]) > 0  # what judges the cut is not at hand
    everything = torch.arange(FINE.count)
    result, exact, engine = filled(at(rungs)[0], KEEPS, reused=everything)
    assert torch.equal(result, ANSWERS)
    assert exact.all()
    assert engine.keep is None
    assert "nothing less promised it" in engine.seen.goal


def test_where_there_is_nothing_to_cut_no_cut_is_claimed() -> None:
    engine = Known(ANSWERS)
    engine.exact = True
    result, exact, _ = filled(at(99)[0], KEEPS, engine=engine)
    assert torch.equal(result, ANSWERS)
    assert exact.all()
    assert "nothing less promised it" in engine.seen.goal


def test_what_is_asked_for_again_is_reused_once() -> None:
    engine, tiles = Known(ANSWERS), gathered([[0, 1, 2], [8, 9, 10]], FINE)
    reusing = ReusingEngine(engine, FINE, reuse.Known(torch.arange(10), ANSWERS[:10]))
    for _ in range(2):
        places = torch.cat([batch.indices for batch in reusing.run(tiles, exact=True)])
        assert places.tolist() == [0, 1, 2, 8, 9, 10]
    assert engine.seen.reused == 5
    assert engine.asked == [10, 10]


@given(st.integers(0, 150))
def test_a_cancelled_run_ends_wherever_it_is(most: int) -> None:
    result, exact, _ = filled(at(99)[0], KEEPS, most)
    assert torch.equal(result[exact], ANSWERS[exact])


def test_a_captured_model_keeps_its_promises_to_the_letter() -> None:
    image, fill = image_and_fill()
    weights = captured_model("residual").weights
    whole = torch.empty(FINE.count, 5)
    for batch in execute(plan_query(captured_model("residual"), FINE), image, fill, weights=weights):
        whole[batch.indices] = batch.logits
    plan = planned()
    for call in (0, 3, 5, 99):
        promise, asked = at(call)
        run = execute(plan, image, fill, weights=weights, promise=lambda base, promise=promise: promise)  # type: ignore[misc]
        found, exact = torch.full_like(whole, torch.nan), torch.zeros(FINE.count, dtype=torch.bool)
        for batch in run:
            found[batch.indices], exact[batch.indices] = batch.logits, batch.exact
        assert torch.isfinite(found).all()
        assert torch.allclose(found[exact], whole[exact], atol=1e-5)
        assert exact.all() == (call == 99)
        assert run.goal
        assert len(asked) >= min(call, 4)
    with pytest.raises(ExecutionError, match="how its quality is judged"):
        execute(plan, image, fill, weights=weights)


# ---------------------------------------------------------------------------------------------------- the ladder


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1))
def test_the_ladder_holds_every_position_once(height: int, width: int, share: float) -> None:
    stages = goal_stages(Grid((height, width), (1, 1), (1, 1)), Approximation(ssim=0.9, quality_share=share))
    total = height * width
    assert sum(stage.count for stage in stages if stage.kind in ("coarse", "refine", "every")) == total
    if len(stages) == 1:
        assert total < FEW or min(height, width) < 9
        return
    lattices = [{(y, x) for y in stage.rows for x in stage.columns} for stage in stages if stage.kind == "coarse"]
    assert all(earlier <= later for earlier, later in itertools.pairwise(lattices))
    held = stages[0].count
    assert [stage.kind for stage in stages[-3:]] == ["every", "hold_out", "interpolate"]
    assert held == stages[-2].count <= total - len(lattices[-1])
    assert held >= min(HELD_OUT, total - len(lattices[-1]))


def test_masks_have_no_goal() -> None:
    with pytest.raises(BindError, match="MASKS have none"):
        goal_stages(Masks(torch.ones(3, 4, 4, dtype=torch.bool)), GOAL)
