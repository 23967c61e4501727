"""Running a plan with a goal for its quality: rung by rung of `planner.goals`, until those held out promise that it is reached.

What is left then is interpolated. If nothing but all positions will do, the last of them are cut as far as the promise holds
(`energy`), else they are exact, too: a correct map is better than a missed goal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from krypton.executor.engine import Batch, Engine
from krypton.executor.precision import Scores
from krypton.executor.stages import StageRun, evenly_drawn
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan, Stage
from krypton.planner.tiles import curve_order, gathered, thinned

Promise = Callable[[Tensor, Tensor, Tensor, Tensor], float | None]
"""The estimated SSIM of a map, of its logits (n, K), which of them are exact (n,), the places (m,) of those held out, where the
logits are exact, too, and what the map would have said there (m, K). None where there is no SSIM."""

MARGIN = 0.2
"""How much more than the goal must be promised, of what is missing to 1: the rung that stops is the luckiest of several."""


def is_enough(said: float, goal: float) -> bool:
    """Is a goal reached, when a look at one of several maps promises so much?"""
    return said >= goal + MARGIN * (1 - goal)


def reached_by_the_exact_map(goal: float, *, looked: bool = True, flat: bool = False) -> str:
    """What becomes of a goal where all positions were computed; `looked`: maps of fewer were judged; `flat`: without SSIM."""
    if not looked:
        return f"SSIM {goal:g} is reached by the exact map; there was time for it"
    because = "the map is too flat for SSIM to tell less from it" if flat else "nothing less promised it"
    return f"SSIM {goal:g} is reached by the exact map; {because}"


def run_goal(
    plan: QueryPlan,
    engine: Engine,
    scores: Scores,
    promise: Promise,
    keeps: Sequence[float],
    reused: Tensor | None = None,
) -> Iterator[Batch]:
    """Batches of all stages up to the one that reaches the goal, as `stages.run_stages` gives them.

    `reused` are the places (m,) of positions that the engine has exact values of without computing them: these are never cut.
    `engine.seen.goal` says in the end how the goal was reached.
    """
    run = GoalRun(plan, engine, scores, promise, keeps, reused)
    for number in range(len(plan.stages)):
        yield from run.stage(number)
        if run.cancelled:
            return


class GoalRun(StageRun):
    """`held` are the places (m,) of the positions held out, and their exact logits `truth` (m, K); not `known` until a rung
    asks for them."""

    def __init__(
        self,
        plan: QueryPlan,
        engine: Engine,
        scores: Scores,
        promise: Promise,
        keeps: Sequence[float],
        reused: Tensor | None = None,
    ) -> None:
        super().__init__(plan, engine, scores)
        assert plan.approximation is not None
        assert plan.approximation.ssim is not None
        self.goal, self.promise, self.keeps = plan.approximation.ssim, promise, keeps
        self.reused = set() if reused is None else {*reused.tolist()}
        self.held, self.truth = torch.zeros(0, dtype=torch.long), self.logits[:0]
        self.reached, self.flat = False, False

    def stage(self, number: int) -> Iterator[Batch]:
        """The batches of one stage of the plan, none when the goal is reached without it."""
        stage = self.plan.stages[number]
        match stage.kind:
            case "measure":
                yield from self._measure(stage)
            case "coarse" | "refine" if not self.reached:
                yield from self._rung(stage)
            case "every" if not self.reached:
                yield from self._rest(stage)
            case "hold_out":
                yield from self._hold_out(stage)
            case "interpolate":
                yield from self._interpolate(stage)

    def _measure(self, stage: Stage) -> Iterator[Batch]:
        """Positions that are in no lattice, exactly."""
        width = self.plan.occlusions.shape[1]
        lattices = {y * width + x for other in self.plan.stages for y in other.rows for x in other.columns}
        outside = [place for place in range(len(self.logits)) if place not in lattices]
        chosen = evenly_drawn(curve_order(self.plan.occlusions, outside), stage.count, self.approximation.seed)
        found = self.measured
        for batch in self.engine.run(self._tiles_of(sorted(chosen)), exact=True):
            found.append(batch)
            yield replace(batch, stage=stage.kind)
        self.cancelled = sum(len(batch.indices) for batch in found) < len(chosen)
        if not self.cancelled:
            self.held, self.truth = (torch.cat(parts) for parts in zip(*((b.indices, b.logits) for b in found), strict=True))

    def _rung(self, stage: Stage) -> Iterator[Batch]:
        """More positions, exactly; then: is that enough?"""
        yield from self._exactly(stage, self._wanted(stage))
        if self.cancelled:
            return
        self.between = self._look()
        thought = self.held[~self.known[self.held]]
        said = self._promised(self.known, thought, self.between[thought])
        if self.reached:
            self._say(said, f"{int(self.known.sum()):,} positions computed, the others interpolated")

    def _wanted(self, stage: Stage) -> list[int]:
        """The positions of a rung that are not known yet."""
        if stage.kind == "coarse":
            return [place for place in self._chosen(stage) if not self.known[place]]
        lowest = self.scores(self.between)[:, 0].argsort(stable=True)
        return sorted(lowest[~self.known[lowest]][: stage.count].tolist())

    def _rest(self, stage: Stage) -> Iterator[Batch]:
        """All that is missing, cut if that will do."""
        at_hand = self.reused - {*self.held.tolist()}
        yield from self._exactly(stage, [place for place in (~self.known).nonzero()[:, 0].tolist() if place in at_hand])
        rest, uncut = (~self.known).nonzero()[:, 0].tolist(), self.plan
        held = self.held[~self.known[self.held]].tolist()
        keeps = self.keeps if 0 < len(held) < len(rest) and self._measured(held) else ()
        for keep in keeps:
            self.plan = self.engine.settled(uncut, keep)
            if self.engine.exact:  # there is nothing to cut
                break
            found = list(self.engine.run(self._tiles_of(held)))
            self.cancelled = sum(len(batch.indices) for batch in found) < len(held)
            if self.cancelled:
                return
            said = self._promised(self.known, torch.cat([b.indices for b in found]), torch.cat([b.logits for b in found]))
            if self.reached:
                self._say(said, f"every position computed, {len(rest):,} of them with keep {keep:g}")
                yield from (self._note(batch, stage) for batch in found)
                yield from self._compute(self._tiles_of(sorted({*rest} - {*held})), stage)
                return
        if self.cancelled:
            return
        self.plan = uncut
        yield from self._exactly(stage, rest)
        self.engine.seen.goal = reached_by_the_exact_map(self.goal, flat=self.flat)

    def _measured(self, chosen: Sequence[int]) -> bool:
        """Whether the engine has seen where the changes of some positions are; not where it was cancelled."""
        found = self.engine.measure(gathered(([index] for index in chosen), self.plan.occlusions))
        self.cancelled = sum(len(batch.indices) for batch in found) < len(chosen)
        return not self.cancelled

    def _exactly(self, stage: Stage, chosen: Sequence[int]) -> Iterator[Batch]:
        """Exact values of some positions; what was held out of them is known already."""
        wanted = torch.zeros(len(self.logits), dtype=torch.bool)
        wanted[list(chosen)] = True
        again = wanted[self.held]
        if bool(again.any()):
            yield self._note(Batch(self.held[again], self.truth[again]), stage)
        wanted[self.held] = False
        missing = wanted.nonzero()[:, 0].tolist()
        yield from self._compute(self._tiles_of(missing, stage), stage, exact=True)

    def _tiles_of(self, chosen: Sequence[int], stage: Stage | None = None) -> list[OcclusionTile]:
        """Tiles of the plan that hold just these positions; of a lattice's own tiling where there is one."""
        occlusions, tensor = self.plan.occlusions, self.plan.tensor
        if tensor is None:
            return gathered([chosen], occlusions)
        if stage is not None and stage.kind == "coarse":
            return thinned(stage.tiling.tiles(occlusions, (stage.rows, stage.columns)), occlusions, chosen)
        return thinned(tensor.tiling.tiles(occlusions), occlusions, chosen)

    def _promised(self, exact: Tensor, places: Tensor, thought: Tensor) -> float | None:
        """The SSIM that is promised where `thought` (m, K) is what the map says of `places` (m,), held out ones; notes whether
        it is enough."""
        if len(places) < len(self.held) / 2:
            return None
        logits, truth = torch.where(self.known[:, None], self.logits, self.between), self.truth.new_zeros(self.logits.shape)
        truth[self.held] = self.truth
        logits[places], exact = truth[places], exact.clone()
        exact[places] = True
        said = self.promise(logits, exact, places, thought)
        self.reached, self.flat = said is not None and is_enough(said, self.goal), said is None
        return said

    def _say(self, said: float | None, what: str) -> None:
        self.engine.seen.goal = f"SSIM {self.goal:g} is reached with {what}: about {said:.3f}"
