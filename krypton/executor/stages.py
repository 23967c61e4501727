"""Running an approximate plan stage by stage: what a stage computes depends on the scores that the ones before it found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from krypton.executor.engine import Batch, Engine
from krypton.executor.interpolation import bilinear, interpolated
from krypton.executor.precision import Scores
from krypton.ir.occlusions import Grid, OcclusionTile
from krypton.ir.plan import QueryPlan, Stage
from krypton.planner.order import spread
from krypton.planner.tiles import curve_order, gathered, thinned


def run_stages(plan: QueryPlan, engine: Engine, scores: Scores) -> Iterator[Batch]:
    """Batches of all stages, in order; what a later one says of a position replaces what an earlier one said.

    `scores` gives (n, targets) of logits (n, K); a drill-down refines where the first target's are lowest. Ends early when the
    engine does.
    """
    run = StageRun(plan, engine, scores)
    for number in range(len(plan.stages)):
        yield from run.stage(number)
        if run.cancelled:
            return


class StageRun:
    """What was found so far: `logits` (n, K), and for each position whether it is `known` and `exact` (n,).

    `plan` becomes another when fields are cut; `measured` are the exact batches that this was decided on.
    """

    def __init__(self, plan: QueryPlan, engine: Engine, scores: Scores) -> None:
        assert plan.approximation is not None
        self.plan, self.engine, self.scores, self.approximation = plan, engine, scores, plan.approximation
        count = plan.occlusions.count
        self.logits = torch.zeros(count, len(engine.base_logits))
        self.between = self.logits  # with what is not known interpolated, when last looked; before those held out
        self.known = torch.zeros(count, dtype=torch.bool)
        self.exact = torch.zeros(count, dtype=torch.bool)
        self.measured: list[Batch] = []
        self.cancelled = False

    def stage(self, number: int) -> Iterator[Batch]:
        """The batches of one stage of the plan."""
        stage = self.plan.stages[number]
        match stage.kind:
            case "measure":
                yield from self._measure(stage)
            case "interpolate":
                yield from self._interpolate(stage)
            case "correct":
                yield from self._correct(stage)
            case "hold_out":
                yield from self._hold_out(stage)
            case _:
                yield from self._compute(self._tiles(stage), stage)

    def _measure(self, stage: Stage) -> Iterator[Batch]:
        """Exact values, which are not counted as known: the approximate ones of the same positions are wanted, too."""
        tiles = self._tiles(stage)
        for batch in self.engine.measure(tiles):
            self.measured.append(batch)
            yield replace(batch, stage=stage.kind)
        self.cancelled = _count(tiles) > sum(len(batch.indices) for batch in self.measured)
        if not self.cancelled:
            assert self.plan.tensor is not None
            self.plan = self.engine.settled(self.plan, self.plan.tensor.keep)

    def _hold_out(self, stage: Stage) -> Iterator[Batch]:
        """Exact values of positions that have none yet, beside what is said of them without any of these."""
        if self.measured:
            rough = [part for batch in self.measured if len((part := self._rough(batch)).indices)]
            places = [place for part in rough for place in part.indices.tolist()]
            found: Iterable[Batch] = (self._note(part, stage) for part in rough)
        else:
            tiles = self._tiles(stage)
            places = [place for tile in tiles for place in tile.indices]
            found = self._compute(tiles, stage, exact=True)
        said, row = self._look(torch.tensor(places, dtype=torch.long)), {place: number for number, place in enumerate(places)}
        for batch in found:
            yield replace(batch, thought=said[[row[place] for place in batch.indices.tolist()]])

    def _rough(self, batch: Batch) -> Batch:
        """The part of an exact batch whose positions are not known exactly."""
        rough = ~self.exact[batch.indices]
        return replace(batch, indices=batch.indices[rough], logits=batch.logits[rough])

    def _interpolate(self, stage: Stage) -> Iterator[Batch]:
        """What is not known."""
        rest = (~self.known).nonzero()[:, 0]
        if len(rest):
            yield self._note(Batch(rest, self._look(rest), exact=False), stage)

    def _look(self, asked: Tensor | None = None) -> Tensor:
        """Logits of the places asked about (m,), or of all, interpolated where they are not known."""
        if bool(self.known.all()):
            return self.logits.clone() if asked is None else self.logits[asked]
        assert isinstance(self.plan.occlusions, Grid)
        return interpolated(self.logits, self.plan.occlusions, self.known, asked)

    def _correct(self, stage: Stage) -> Iterator[Batch]:
        """Exact values at crossings; what the cheap ones there are off by is taken to vary evenly between them.

        Errors are rougher than maps: smooth curves through them overshoot.
        """
        cheap = self.logits.clone()
        yield from self._compute(self._tiles(stage), stage, exact=True)
        if not self.cancelled:
            assert isinstance(self.plan.occlusions, Grid)
            errors = bilinear(self.logits - cheap, self.plan.occlusions, (stage.rows, stage.columns))
            rest = (~self.exact).nonzero()[:, 0]
            mended = self._note(Batch(rest, cheap[rest] + errors[rest], exact=False), stage)
            yield replace(mended, stage="interpolate")

    def _compute(self, tiles: Sequence[OcclusionTile], stage: Stage, *, exact: bool = False) -> Iterator[Batch]:
        missing = _count(tiles)
        for batch in self.engine.run(tiles, exact=exact):
            missing -= len(batch.indices)
            yield self._note(batch, stage)
        self.cancelled = missing > 0

    def _note(self, batch: Batch, stage: Stage) -> Batch:
        self.logits[batch.indices], self.exact[batch.indices] = batch.logits, torch.tensor(batch.exact)
        self.known[batch.indices] = True
        return replace(batch, stage=stage.kind)

    def _tiles(self, stage: Stage) -> list[OcclusionTile]:
        occlusions, tensor = self.plan.occlusions, self.plan.tensor
        if tensor is not None and stage.kind in ("every", "coarse", "correct"):
            tiling, lattice = (tensor.tiling, None) if stage.kind == "every" else (stage.tiling, (stage.rows, stage.columns))
            return spread(tiling, occlusions, lattice)
        chosen = self._chosen(stage)
        if stage.kind == "measure":
            return gathered(([index] for index in chosen), occlusions)
        if tensor is not None:
            return thinned(tensor.tiling.tiles(occlusions), occlusions, chosen)
        return gathered([chosen], occlusions)

    def _chosen(self, stage: Stage) -> list[int]:
        """The positions that a stage computes."""
        match stage.kind:
            case "coarse" | "correct":
                width = self.plan.occlusions.shape[1]
                return [row * width + column for row in stage.rows for column in stage.columns]
            case "refine":
                return self._most_sensitive(round((self.approximation.drilldown or 0) * len(self.logits)))
            case "hold_out" | "measure":
                rough = (~self.exact).nonzero()[:, 0].tolist()
                return evenly_drawn(curve_order(self.plan.occlusions, rough), stage.count, self.approximation.seed)
            case _:
                return list(range(len(self.logits)))

    def _most_sensitive(self, count: int) -> list[int]:
        """Of the positions whose interpolated score is lowest, so many, those that are not known."""
        if not count:
            return []
        self.between = self._look()
        lowest = self.scores(self.between)[:, 0].argsort(stable=True)[:count]
        return sorted(lowest[~self.known[lowest]].tolist())


def _count(tiles: Sequence[OcclusionTile]) -> int:
    return sum(len(tile.indices) for tile in tiles)


def evenly_drawn(candidates: Sequence[int], count: int, seed: int) -> list[int]:
    """One of each of `count` parts of a sequence that are as equal as can be, at random; all different."""
    count = min(count, len(candidates))
    first = torch.arange(count + 1) * len(candidates) // max(count, 1)
    shift = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    places = first[:-1] + (shift * first.diff()).long()
    return sorted(candidates[place] for place in places.tolist())
