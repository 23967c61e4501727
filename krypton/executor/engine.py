"""Engines: what answers for occlusions, set up once for an image. A tensor plan on its base views, or the model itself.

An execution asks one for tiles, all of them at once or stage by stage (`stages`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor, nn

from krypton.executor.energy import EnergyMeter
from krypton.executor.memory import half_of
from krypton.executor.naive import naive_batches, naive_logits
from krypton.executor.occluder import Occluder
from krypton.executor.pacing import UNHURRIED, Pacing
from krypton.executor.precision import Precision, Scores, probability_of_prediction, settle
from krypton.executor.program import Program, StopExecutionError
from krypton.executor.sensitivity import sensitivities
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan, StageKind, TensorPlan
from krypton.ir.weights import Reference, WeightStore
from krypton.planner.cost import DeviceProfile
from krypton.planner.precision import by_weight, in_low_precision, without_approximations, without_cuts
from krypton.planner.stages import with_tilings
from krypton.planner.tiles import cheapest_tiling
from krypton.settings import Settings

EARLY = 0.04
"""Of all positions, when the first are made known: the rest of the model then runs on few."""


@dataclass(frozen=True)
class Batch:
    """Logits (n, K) float32 on the CPU, of the occlusions at these places (n,) of the flattened query.

    `exact`: nothing approximate made them. `stage` is that of an approximate plan, None in others. `thought` (n, K): what an
    approximate plan says of positions that are held out, and of no others.
    """

    indices: Tensor
    logits: Tensor
    exact: bool = True
    stage: StageKind | None = None
    thought: Tensor | None = None


@dataclass
class Seen:
    """What turns out on the way. `trimmed`: occlusions are left out or made smaller, for the fill equals the image there.
    `reused`: how many were known from an earlier run; `goal`: how a goal was met; `settled`: the plan whose fields are cut."""

    trimmed: bool = False
    reused: int = 0
    goal: str = ""
    settled: TensorPlan | None = None


class Engine(Protocol):
    """`base_logits` (K,) are those of the unmodified image, on the CPU; `precision` what low precision costs, if there is any,
    `learned` how sensitive to it layers were found to be, by their weight.

    `run` answers for the occlusions of some tiles; `exact` asks for values that nothing approximate makes, which is what `run`
    gives anyway where the engine's `exact` says so; `pacing` decides while it runs how far it goes. `measure` answers
    exactly, and sees where changes are, for `settled`: the plan with fields cut to a share of them, by which `run` then goes.
    Both end early when the run is cancelled.
    """

    base_logits: Tensor

    @property
    def learned(self) -> Mapping[Reference, float]: ...
    @property
    def precision(self) -> Precision | None: ...
    @property
    def seen(self) -> Seen: ...
    @property
    def exact(self) -> bool: ...

    def run(self, tiles: Sequence[OcclusionTile], *, exact: bool = False, pacing: Pacing = ...) -> Iterator[Batch]: ...
    def measure(self, tiles: Sequence[OcclusionTile], *, pacing: Pacing = ...) -> Iterator[Batch]: ...
    def settled(self, plan: QueryPlan, keep: float) -> QueryPlan: ...


class NaiveEngine:
    """The model itself on occluded images."""

    precision: Precision | None = None
    learned: Mapping[Reference, float] = {}
    exact = True

    def __init__(self, module: nn.Module, occluder: Occluder, batch: int, cancelled: Callable[[], bool] | None) -> None:
        self._module, self._occluder, self._batch, self._cancelled = module, occluder, batch, cancelled
        self.seen = Seen()
        self.base_logits = naive_logits(module, occluder.image[None])[0].cpu()

    def run(self, tiles: Sequence[OcclusionTile], *, exact: bool = False, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        paced = pacing.tiles(tiles)
        for indices, logits, seconds in naive_batches(self._module, self._occluder, self._batch, paced, self._cancelled):
            pacing.ran(len(indices), seconds)
            pacing.finished(len(indices), 0.0)
            yield Batch(indices, logits)

    def measure(self, tiles: Sequence[OcclusionTile], *, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        return self.run(tiles, pacing=pacing)

    def settled(self, plan: QueryPlan, keep: float) -> QueryPlan:
        return plan


class TensorEngine:
    """A tensor plan on the views of one image. `actual` collects milliseconds per node when given."""

    def __init__(
        self,
        plan: QueryPlan,
        weights: WeightStore,
        occluder: Occluder,
        tiles: Sequence[OcclusionTile],
        *,
        actual: dict[int, float] | None = None,
        cancelled: Callable[[], bool] | None = None,
        settings: Settings,
        profile: DeviceProfile | None = None,
        scores: Callable[[Tensor], Scores] | None = None,
    ) -> None:
        assert plan.tensor is not None
        self._weights, self._occluder, self._device = weights, occluder, torch.device(plan.device)
        self._actual, self._cancelled, self._settings = actual, cancelled, settings
        self._profile = profile or DeviceProfile()
        self._tensor, self.precision, self.seen = plan.tensor, None, Seen()
        self.learned: Mapping[Reference, float] = {}
        every = plan.tensor.tiling.tiles(plan.occlusions)
        self._early = math.ceil(EARLY * plan.occlusions.count)
        self._program = self._compile(plan.tensor)
        self.base_logits = self._program.prepare(occluder.image, every if plan.tensor.tolerance else tiles).cpu()
        if plan.tensor.tolerance:
            scored = (scores or probability_of_prediction)(self.base_logits)
            self._tensor, self.precision = settle(
                plan.tensor, every, self.base_logits, scored, self._attempt, partial(self._gradients, scored)
            )
            if self._tensor.sensitivity != plan.tensor.sensitivity:
                self.learned = by_weight(self._tensor.graph, self._tensor.sensitivity)
            self._program = self._compile(self._tensor, self._program)

    @property
    def exact(self) -> bool:
        """Is what the plan computes exact, as it is now?"""
        return not (self._tensor.cut or in_low_precision(self._tensor.graph))

    def run(self, tiles: Sequence[OcclusionTile], *, exact: bool = False, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        program = self._program if self.exact or not exact else self._exact_program
        exact = exact or self.exact
        asked, (tiles, unchanged) = list(tiles), self._occluder.trimmed(tiles)
        self.seen.trimmed = self.seen.trimmed or tiles != asked
        if unchanged:
            yield Batch(torch.tensor(unchanged), self.base_logits.expand(len(unchanged), -1))
        for batch in tile_batches(program, program.plan, self._occluder, tiles, self._early, pacing):
            yield replace(batch, exact=exact)

    def measure(self, tiles: Sequence[OcclusionTile], *, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        program = self._compile(self._exact_program.plan, self._exact_program, self._meter)
        if self._tensor.frozen:  # then there are no changes to see in what is exact
            watched = self._compile(without_cuts(self._tensor), self._program, self._meter)
            deque(tile_batches(watched, watched.plan, self._occluder, tiles, pacing=pacing), maxlen=0)
        yield from tile_batches(program, program.plan, self._occluder, tiles, pacing=pacing)

    def settled(self, plan: QueryPlan, keep: float) -> QueryPlan:
        graph = self._meter.cut(keep)
        tiling = cheapest_tiling(graph, plan.occlusions, self._profile, self._settings)
        self._tensor = self.seen.settled = replace(self._tensor, graph=graph, tiling=tiling)
        self._program = self._compile(self._tensor, self._program)
        stages = with_tilings(plan.stages, graph, plan.occlusions, self._profile, self._settings)
        return replace(plan, tensor=self._tensor, stages=stages)

    @cached_property
    def _exact_program(self) -> Program:
        """The same plan without cuts and low precision, on the same views."""
        return self._compile(without_approximations(self._tensor), self._program)

    @cached_property
    def _meter(self) -> EnergyMeter:
        return EnergyMeter(self._tensor.graph)

    def _compile(self, tensor: TensorPlan, other: Program | None = None, meter: EnergyMeter | None = None) -> Program:
        program = Program(tensor, self._weights, self._device, self._actual, self._cancelled, self._settings["debug"], meter)
        if other is not None:
            program.adopt(other)
        return program

    def _attempt(self, candidate: TensorPlan, some: Sequence[OcclusionTile]) -> Tensor:
        """Logits of the occlusions of some tiles by a plan that differs in its kernels alone."""
        trial = Program(candidate, self._weights, self._device, None, self._cancelled)
        trial.adopt(self._program)
        return torch.cat([batch.logits for batch in tile_batches(trial, candidate, self._occluder, some)])

    def _gradients(self, scores: Scores, indices: Sequence[int], asked: Collection[int]) -> dict[int, float]:
        """See `sensitivity`; of fewer occlusions where memory is short, and nothing where it is too short for one, or where an
        operator has no gradient."""
        image = 4 * sum(math.prod(node.shape) for node in self._tensor.graph) / 2**20  # megabytes
        room = int(self._settings["memory_limit_mb"] / (3 * image)) - 1
        if room < 1:
            return {}
        images = torch.cat([self._occluder.image[None], self._occluder.images(indices[:room])])
        try:
            return sensitivities(self._tensor.graph, self._program.weight, images, scores, asked)
        except (RuntimeError, MemoryError):
            return {}


def tile_batches(
    program: Program,
    tensor: TensorPlan,
    occluder: Occluder,
    tiles: Iterable[OcclusionTile],
    early: int | None = None,
    pacing: Pacing = UNHURRIED,
) -> Iterator[Batch]:
    """Tiles through the trunk; whole values are gathered until a batch for the head is full, the first one when there are
    `early` of them. A run that is cancelled in the trunk yields what was gathered, unless it is cancelled in the head, too."""
    waiting: list[dict[int, Tensor]] = []
    indices: list[int] = []
    most = tensor.head_batch
    wanted = min(most, early or most)

    def flush() -> Batch:
        nonlocal most
        started = time.perf_counter()
        values = {key: torch.cat([part[key] for part in waiting]) for key in waiting[0]}
        logits = None
        while logits is None:
            size = min(len(indices), most)
            try:
                logits = program.head({key: value[:size] for key, value in values.items()}, size)
            except (MemoryError, RuntimeError) as error:
                most = half_of(size, error)
        taken = indices[:size]
        del indices[:size]
        waiting[:] = [{key: value[size:] for key, value in values.items()}] if indices else []
        found = Batch(torch.tensor(taken), logits.float().cpu())
        pacing.finished(size, time.perf_counter() - started)
        return found

    try:
        for tile in pacing.tiles(tiles):
            started = time.perf_counter()
            for part, values in _with_halving(program, occluder, tile):
                pacing.ran(len(part.indices), time.perf_counter() - started)
                waiting.append(values)
                indices.extend(part.indices)
                while len(indices) >= min(wanted, most):
                    yield flush()
                    wanted = most
                started = time.perf_counter()
    except StopExecutionError:
        pass
    try:
        while indices:
            yield flush()
    except StopExecutionError:
        return


def _with_halving(
    program: Program, occluder: Occluder, tile: OcclusionTile
) -> Iterator[tuple[OcclusionTile, dict[int, Tensor]]]:
    try:
        values = program.trunk(occluder, tile)
    except (MemoryError, RuntimeError) as error:
        values, middle = None, half_of(len(tile.indices), error)
    if values is not None:
        yield tile, values
        return
    for half in (slice(middle), slice(middle, None)):
        yield from _with_halving(program, occluder, tile.part(half))
