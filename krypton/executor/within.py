"""The best map by a deadline: coarse everywhere, then finer level by level, first where neighbours disagree.

The papers' drill-down has two stages whose sizes are chosen beforehand. Here there are as many levels as time allows: each
halves the step of the one before, and within a level those tiles come first whose known neighbours differ most. Flat regions
are left for the end. A few positions are held out from all of this: what the map says of them, interpolated, is compared
with their exact values, which tells its quality; then the rest is interpolated between these, too. When time suffices for
all positions, all are computed, and the map is exact. With a goal for its quality the run ends as soon as those held out
promise it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from krypton.errors import ExecutionError
from krypton.executor.engine import Batch, Engine
from krypton.executor.goals import Promise, is_enough, reached_by_the_exact_map
from krypton.executor.interpolation import interpolated
from krypton.executor.pacing import Clock
from krypton.executor.precision import Scores
from krypton.executor.reuse import Known
from krypton.executor.stages import evenly_drawn
from krypton.ir.occlusions import Grid, OcclusionTile
from krypton.ir.plan import QueryPlan, Stage, StageKind
from krypton.planner.goals import HELD_OUT
from krypton.planner.order import level_order, spread
from krypton.planner.prediction import interpolating
from krypton.planner.tiles import curve_order, gathered, thinned

_FLAT = 0.02  # of the map's range: neighbours that differ by less agree
_SURELY = 0.85  # of the time left that all that is missing may be predicted to take, to begin with it at once
_HELD_OUT = 0.08  # of the time left, at most, twice that for a goal; positions for themselves take longer than many together
_JUDGES = 4  # held out positions that are still interpolated, before anything is promised on the strength of them
_PER_VALUE = 15e-9  # seconds to keep one logit
_MANY = 100  # positions, of which it shows how long gathering them into tiles takes
_MORE = 1.2  # times as many positions as at the last look, before it is looked again whether the goal is reached
_AT_LEAST = 0.01  # seconds for whatever else happens between the last batch and the answer


def run_within(
    plan: QueryPlan, engine: Engine, scores: Scores, clock: Clock, known: Known | None, promise: Promise | None = None
) -> Iterator[Batch]:
    """Batches of what is known, of each level, and at the end of what was held out and of the interpolated rest.

    Occlusions by masks have no neighbours: as many as there is time for are computed. `scores` gives (n, targets) of logits
    (n, K); levels are refined by the first target's. `promise` judges the map of a plan with a goal, for which it is needed;
    `engine.seen.goal` says in the end what became of that. Raises ExecutionError when not even one position can be computed.
    """
    return _Within(plan, engine, scores, clock, promise).batches(known)


class _Within:
    """What was found so far: `logits` (n, K), and of each position whether it is `known`, `exact`, and `held` out (n,)."""

    def __init__(self, plan: QueryPlan, engine: Engine, scores: Scores, clock: Clock, promise: Promise | None) -> None:
        assert plan.approximation is not None
        self.promise, self.looked_at = promise, 0
        self.said: float | None = None  # by the promise, when last looked at
        self.plan, self.engine, self.scores, self.clock = plan, engine, scores, clock
        self.approximation, self.occlusions = plan.approximation, plan.occlusions
        self.views_took = clock.spent
        self.preparing = 0.0  # seconds for each position of a level, before its first tile runs
        self.begun = False
        self.cancelled = False  # by others than the clock
        count = plan.occlusions.count
        self.logits = torch.zeros(count, len(engine.base_logits))
        self.known = torch.zeros(count, dtype=torch.bool)
        self.exact = torch.zeros(count, dtype=torch.bool)
        self.held = torch.zeros(count, dtype=torch.bool)
        self.held_logits = torch.zeros_like(self.logits)
        clock.reserve = _AT_LEAST + _PER_VALUE * self.logits.numel()
        if isinstance(self.occlusions, Grid):
            self.look_takes = interpolating(count, self.logits.shape[1]) / 1e3  # seconds to interpolate, and to judge that
            clock.reserve += self.look_takes

    def batches(self, known: Known | None) -> Iterator[Batch]:
        if known is not None:
            self.engine.seen.reused += len(known.indices)
            yield self._note(Batch(known.indices, known.logits), "level")
        yield from self._measured()
        levels = [stage for stage in self.plan.stages if stage.kind == "level"]
        for number, stage in enumerate(levels):
            last = stage is levels[-1]
            if not last and number and self._time_for_all():
                continue
            if not self.begun:
                yield from self._begin(stage)
            if number:  # those of the coarsest lattice say nothing of what is between them
                self._hold_out()
            yield from self._level(stage, patient=not last)
        if not self.engine.exact:
            yield from self._compute(self._tiles(levels[-1], ~self.exact & ~self.held), exact=True)
        if self.cancelled:
            return
        if not (self.known.any() or self.held.any()):
            raise self._too_short()
        yield from self._finish()

    def _level(self, stage: Stage, *, patient: bool) -> Iterator[Batch]:
        """One level; with `patient`, without the tiles whose neighbours agree."""
        if self._over:
            return
        started, wanted = time.perf_counter(), self._wanted(stage)
        count = int(wanted.sum())
        if self.preparing * count > self.clock.left:
            return
        tiles = self._tiles(stage, wanted)
        if isinstance(self.occlusions, Grid) and bool(self.known.any()):
            disagreement = self._disagreement(self.occlusions)
            of = {tile: float(disagreement[list(tile.indices)].mean()) for tile in tiles}
            tiles = sorted((tile for tile in tiles if not patient or of[tile] > _FLAT), key=lambda tile: -of[tile])
        if count >= _MANY:
            self.preparing = (time.perf_counter() - started) / count
        yield from self._compute(tiles)

    def _begin(self, stage: Stage) -> Iterator[Batch]:
        """A little of a level, to see how long it takes, unless all of it is known."""
        tiles = self._tiles(stage, self._wanted(stage))[:1]
        self.begun = bool(tiles)
        for size in (1, 4):
            some = [tile.part(slice(0, size)) for tile in tiles]
            yield from self._compute(some)
            tiles = self._without(tiles, {index for tile in some for index in tile.indices})

    @property
    def _over(self) -> bool:
        return self.clock.stopped or self.cancelled

    def _compute(self, tiles: Sequence[OcclusionTile], *, exact: bool = False) -> Iterator[Batch]:
        if self._over:
            return
        missing = sum(len(tile.indices) for tile in tiles)
        for batch in self.engine.run(tiles, exact=exact, pacing=self.clock):
            missing -= len(batch.indices)
            yield self._note(batch, "level")
            if self._reached():
                return
        self.cancelled = missing > 0 and not self.clock.stopped

    def _note(self, batch: Batch, stage: StageKind) -> Batch:
        self.logits[batch.indices], self.exact[batch.indices] = batch.logits, torch.tensor(batch.exact)
        self.known[batch.indices] = True
        return replace(batch, stage=stage)

    # which positions

    def _wanted(self, stage: Stage) -> Tensor:
        """(n,) bool: the positions of a level that are still to be computed."""
        missing = ~self.known
        if self.engine.exact:  # else the approximate value of what is held out is wanted, too
            missing &= ~self.held
        if not stage.rows:
            return missing
        on_lattice = torch.zeros(self.occlusions.shape, dtype=torch.bool)
        on_lattice[torch.tensor(stage.rows)[:, None], torch.tensor(stage.columns)] = True
        return missing & on_lattice.flatten()

    def _tiles(self, stage: Stage, wanted: Tensor) -> list[OcclusionTile]:
        """Those positions (n,), gathered by the level's tiling, spread over the map."""
        chosen, tensor = wanted.nonzero()[:, 0].tolist(), self.plan.tensor
        if tensor is None:
            order = level_order(*self.occlusions.shape) if isinstance(self.occlusions, Grid) else range(self.occlusions.count)
            asked = set(chosen)
            ordered = [index for index in order if index in asked]
            starts = range(0, len(ordered), self.plan.batch)
            return gathered((ordered[start : start + self.plan.batch] for start in starts), self.occlusions)
        if stage.tiling.rows:
            tiles = spread(stage.tiling, self.occlusions, (stage.rows, stage.columns))
        else:
            tiles = spread(tensor.tiling, self.occlusions)
        if tensor.tiling.groups:
            tiles = [tiles[place] for place in level_order(1, len(tiles))]
        return thinned(tiles, self.occlusions, chosen)

    def _without(self, tiles: Sequence[OcclusionTile], done: set[int]) -> list[OcclusionTile]:
        """The tiles less what was computed of them."""
        return gathered(([index for index in tile.indices if index not in done] for tile in tiles), self.occlusions)

    def _disagreement(self, grid: Grid) -> Tensor:
        """(n,): by how much the score varies around each position, between known neighbours; 1 is the range of the map."""
        from scipy.ndimage import maximum_filter, minimum_filter

        values = self.scores(self.logits[self.known])[:, :1]
        sparse = torch.zeros(len(self.known), 1)
        sparse[self.known] = values
        found = interpolated(sparse, grid, self.known).view(*grid.shape).numpy()
        window = 2 * self._step() + 1
        varies = maximum_filter(found, window) - minimum_filter(found, window)
        return torch.from_numpy(varies / max(float(np.ptp(found)), 1e-12)).flatten()

    def _step(self) -> int:
        """About how far known positions are from each other, in positions."""
        return max(round(math.sqrt(len(self.known) / max(int(self.known.sum()), 1))), 1)

    def _time_for_all(self) -> bool:
        missing = int((~self.known).sum())
        return bool(self.clock.alone) and self.clock.predicted(missing) < _SURELY * self.clock.left

    # quality

    def _measured(self) -> Iterator[Batch]:
        """Where fields are to be cut: exact values, which are held out from then on."""
        for stage in self.plan.stages:
            if stage.kind == "measure":
                tiles = self._drawn(~self.exact, stage.count)
                for batch in self.engine.measure(tiles, pacing=self.clock):
                    self._hold(batch)
                    yield replace(batch, stage="measure")
                self.cancelled = int(self.held.sum()) < len(tiles) and not self.clock.stopped
                if not self._over:
                    assert self.plan.tensor is not None
                    self.plan = self.engine.settled(self.plan, self.plan.tensor.keep)

    def _hold_out(self) -> None:
        """Compute a few positions exactly that the map is not to know of; not again where some were measured."""
        if self.held.any() or self._over or not isinstance(self.occlusions, Grid):
            return
        goal = self.promise is not None
        affordable = (2 if goal else 1) * _HELD_OUT * self.clock.left / (self.clock.alone or math.inf)
        wanted = max(self.approximation.quality_share * len(self.known), HELD_OUT if goal else 0)
        if not min(wanted, affordable):
            return
        drawn = self._drawn(~self.known if self.engine.exact else ~self.exact, math.ceil(min(wanted, affordable)))
        for batch in self.engine.run(drawn, exact=True, pacing=self.clock):
            self._hold(batch)
        self.cancelled = int(self.held.sum()) < len(drawn) and not self.clock.stopped

    def _hold(self, batch: Batch) -> None:
        self.held[batch.indices] = True
        self.held_logits[batch.indices] = batch.logits

    def _reached(self) -> bool:
        """Is the goal promised, if there is one? Then nothing more is computed. Looked at now and then: it takes time, too."""
        count = int(self.known.sum())
        if self.promise is None or not isinstance(self.occlusions, Grid) or count < _MORE * self.looked_at:
            return False
        places = (self.held & ~self._in_company(self.occlusions)).nonzero()[:, 0]
        if len(places) < _JUDGES or int(self.held.sum()) < HELD_OUT / 3 or self.look_takes > self.clock.left:
            return False
        self.looked_at, started = count, time.perf_counter()
        between = interpolated(self.logits, self.occlusions, self.known)
        thought, exact = between[places], self.exact | self.held
        between[self.held] = self.held_logits[self.held]
        self.said = self.promise(between, exact, places, thought)
        self.look_takes = time.perf_counter() - started
        if self.said is None or not is_enough(self.said, self._goal()):
            return False
        self.clock.stopped = True
        text = f"SSIM {self._goal():g} is reached with {count:,} positions computed, the others interpolated"
        self.engine.seen.goal = f"{text}: about {self.said:.3f}"
        return True

    def _goal(self) -> float:
        assert self.approximation.ssim is not None
        return self.approximation.ssim

    def _drawn(self, candidates: Tensor, count: int) -> list[OcclusionTile]:
        """So many of the candidates (n,), each in a tile of its own."""
        order = curve_order(self.occlusions, candidates.nonzero()[:, 0].tolist())
        return gathered(([index] for index in evenly_drawn(order, count, self.approximation.seed)), self.occlusions)

    def _in_company(self, grid: Grid) -> Tensor:
        """(n,) bool: held out positions all of whose neighbours were computed; nothing interpolated is like them."""
        from scipy.ndimage import minimum_filter

        computed = (self.known | self.held).view(*grid.shape).numpy().astype(np.uint8)
        return self.held & torch.from_numpy(minimum_filter(computed, 3, mode="nearest") == 1).flatten()

    # the end

    def _finish(self) -> Iterator[Batch]:
        held = self.held.clone()
        if self.promise is not None and not self.engine.seen.goal:
            self.engine.seen.goal = self._missed()
        if isinstance(self.occlusions, Grid):
            if self.engine.exact:
                held &= ~self._in_company(self.occlusions)
            if not self.known.any():  # nothing but what was measured
                held &= False
            yield from self._put_in(self.held & ~held, "level")
            said = interpolated(self.logits, self.occlusions, self.known, held.nonzero()[:, 0]) if held.any() else None
            yield from self._put_in(held, "hold_out", said)
            rest = (~self.known).nonzero()[:, 0]
            if len(rest):
                found = interpolated(self.logits, self.occlusions, self.known, rest)
                yield Batch(rest, found, exact=False, stage="interpolate")
        else:
            held &= self.known
            yield from self._put_in(self.held & ~held, "level")
            yield from self._put_in(held, "hold_out", self.logits[held])

    def _put_in(self, which: Tensor, stage: StageKind, said: Tensor | None = None) -> Iterator[Batch]:
        """Exact values of some that were held out (n,); beside what is `said` (m, K) without where the quality is measured."""
        indices = which.nonzero()[:, 0]
        if len(indices):
            yield self._note(Batch(indices, self.held_logits[indices], thought=said), stage)

    def _missed(self) -> str:
        """What became of the goal when time was up."""
        if bool((self.exact | self.held).all()):
            return reached_by_the_exact_map(self._goal(), looked=self.looked_at > 0, flat=self.said is None)
        if self.said is None:
            thought = "the map is too flat for that" if self.looked_at else "not looked at"
        else:
            thought = f"about {self.said:.3f} when last looked at"
        return f"SSIM {self._goal():g} was not promised within {self.clock.seconds:g} s{self._its_part()}: {thought}"

    def _its_part(self) -> str:
        return f", its part of the time for {self.clock.images} images," if self.clock.images > 1 else ""

    def _too_short(self) -> ExecutionError:
        took, asked = self.views_took, self.clock.seconds
        enough = math.ceil(20 * max(took, time.perf_counter() - self.clock.started)) / 10
        return ExecutionError(
            f"{asked:.3g} seconds{self._its_part()} are too short for any position: the base views of the image alone took "
            f"{took:.2f} s. Write WITHIN {enough * self.clock.images:g} SECONDS or more, or leave it out"
        )
