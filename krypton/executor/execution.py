"""One run of a plan: batches of logits as they come, the base logits, and what was measured on the way.

Closing the iterator (or an interrupt) stops between operators; what was yielded is valid. On out-of-memory a tile is halved.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor, nn

from krypton.errors import ExecutionError
from krypton.executor.engine import Batch, Engine, NaiveEngine, TensorEngine
from krypton.executor.goals import Promise, run_goal
from krypton.executor.memory import give_back, kept_blocks
from krypton.executor.occluder import Occluder
from krypton.executor.pacing import Clock
from krypton.executor.precision import Scores, probability_of_prediction
from krypton.executor.program import Program
from krypton.executor.reuse import Known, ReusingEngine
from krypton.executor.stages import run_stages
from krypton.executor.within import run_within
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan, TensorPlan
from krypton.ir.verify import verify_plan
from krypton.ir.weights import WeightStore
from krypton.planner.cost import DeviceProfile
from krypton.planner.goals import KEEPS
from krypton.planner.order import spread, together
from krypton.planner.precision import without_approximations
from krypton.settings import Settings


class Execution:
    """An iterator of batches. `base_logits` (K,) are those of the unmodified image.

    `actual` has, when timed, the milliseconds of each node over the whole run so far; `seconds` the run's own time so far,
    base views included; `precision` what low precision costs, where the plan has any, and `learned` how sensitive to it
    layers turned out to be, by their weight, where that is news.
    """

    def __init__(
        self,
        engine: Engine,
        batches: Generator[Batch, None, None],
        actual: dict[int, float],
        started: float,
    ) -> None:
        self.base_logits = engine.base_logits
        self.actual = actual
        self.precision, self.learned = engine.precision, engine.learned
        self._seen = engine.seen
        self._batches = batches
        self._spent = time.perf_counter() - started

    @property
    def seconds(self) -> float:
        return self._spent

    @property
    def trimmed(self) -> bool:
        """Were occlusions left out or made smaller so far, because the fill equals the image there?"""
        return self._seen.trimmed

    @property
    def reused(self) -> int:
        """How many positions were not computed so far, for they were known."""
        return self._seen.reused

    @property
    def settled(self) -> TensorPlan | None:
        """The plan with fields cut to where changes are, once these are measured."""
        return self._seen.settled

    @property
    def goal(self) -> str:
        """How the goal of the plan was reached, once it is; empty where there is none."""
        return self._seen.goal

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._spent += time.perf_counter() - started

    def close(self) -> None:
        """Stop; nothing more will come."""
        self._batches.close()


def execute(
    plan: QueryPlan,
    image: Tensor,
    fill: Tensor,
    *,
    weights: WeightStore | None = None,
    module: nn.Module | None = None,
    settings: Settings | None = None,
    timed: bool = False,
    tiles: Sequence[OcclusionTile] | None = None,
    cancelled: Callable[[], bool] | None = None,
    scores: Callable[[Tensor], Scores] | None = None,
    promise: Callable[[Tensor], Promise] | None = None,
    profile: DeviceProfile | None = None,
    known: Callable[[Tensor], Known | None] | None = None,
    clock: Clock | None = None,
) -> Execution:
    """Start a plan on an image and a fill, both (C, H, W) float32 in the model's input space.

    Tensor plans need `weights`, others the `module`. `tiles` restricts the run to some of the tiles of a plan without
    stages. `cancelled` is asked between operators (between batches in naive plans); when it says so, the run ends early
    without an error. `scores` makes, of the base logits, the scores that the tolerance of a plan in low precision is about,
    and a drill-down; by default the probability of the predicted class. `promise` makes of them what judges the
    quality of a plan with a goal, which must have it. `profile` says what tiles cost, where they are chosen anew when fields
    were cut. `known` gives, for the base logits, exact values that need not be computed. `clock` is that of a plan with a
    deadline; it starts now unless it is given.
    Raises ExecutionError when an image does not fit the plan or memory runs out for a single occlusion.
    """
    settings = settings or Settings()
    verify_plan(plan)
    if tuple(image.shape) != tuple(plan.input_shape) and plan.tensor is not None:
        raise ExecutionError(f"the plan is for images {plan.input_shape}, this one is {tuple(image.shape)}")
    if plan.stages and tiles is not None:
        raise ExecutionError("an approximate plan chooses its tiles itself, stage by stage: run it without tiles")
    within = plan.approximation.within if plan.approximation is not None else None
    if within is not None:
        clock = clock or Clock(within)
        cancelled = _either(clock.cancelled, cancelled)
    started = time.perf_counter()
    device = torch.device(plan.device)
    if tiles is None:
        tiles = [] if within is not None else _every(plan)  # what there is time for turns out on the way
    actual: dict[int, float] = {}
    with _threads(settings), kept_blocks(), torch.no_grad():
        occluder = Occluder(plan.occlusions, image.to(device).float(), fill.to(device).float().expand(image.shape))
        engine: Engine
        if plan.tensor is None:
            if module is None:
                raise ExecutionError("a naive plan needs the model itself")
            engine = NaiveEngine(module, occluder, plan.batch, cancelled)
        else:
            if weights is None:
                raise ExecutionError("an exact plan needs the weights of its model")
            engine = TensorEngine(
                plan,
                weights.on(device),
                occluder,
                tiles,
                actual=actual if timed else None,
                cancelled=cancelled,
                settings=settings,
                profile=profile,
                scores=scores,
            )
        found = known(engine.base_logits) if known is not None else None
        scored = (scores or probability_of_prediction)(engine.base_logits)
        if found is not None and within is None:
            engine = ReusingEngine(engine, plan.occlusions, found)
        judge = None
        if plan.approximation is not None and plan.approximation.ssim is not None:
            if promise is None:
                raise ExecutionError("a plan with a goal needs to be told how its quality is judged")
            judge = promise(engine.base_logits)
        if within is not None and clock is not None:
            batches = run_within(plan, engine, scored, clock, found, judge)
        elif judge is not None:
            keeps = () if plan.tensor is None or "energy_cut" in settings["disabled_rules"] else KEEPS
            batches = run_goal(plan, engine, scored, judge, keeps, None if found is None else found.indices)
        elif plan.stages:
            batches = run_stages(plan, engine, scored)
        else:
            batches = engine.run(tiles)
        return Execution(engine, _scoped(batches, settings), actual, started)


def make_ready(tensor: TensorPlan, weights: WeightStore, device: str) -> None:
    """Build the kernels of a plan with their layouts of the weights, and load what interpolates: the first run does so else."""
    import scipy.ndimage
    import scipy.spatial  # noqa: F401

    where = torch.device(device)
    with torch.no_grad():
        for each in (tensor, without_approximations(tensor)):
            Program(each, weights.on(where), where)


def _either(first: Callable[[], bool], second: Callable[[], bool] | None) -> Callable[[], bool]:
    return first if second is None else lambda: first() or second()


def _every(plan: QueryPlan) -> list[OcclusionTile]:
    """All occlusions, those of a grid coarsely all over first."""
    return [together(plan.occlusions)] if plan.tensor is None else spread(plan.tensor.tiling, plan.occlusions)


@contextlib.contextmanager
def _threads(settings: Settings) -> Iterator[None]:
    before, wanted = torch.get_num_threads(), settings["threads"]
    if wanted is None:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _scoped(batches: Iterator[Batch], settings: Settings) -> Generator[Batch, None, None]:
    """Every step runs without gradients, with the session's threads, and with memory kept for the next step."""
    try:
        while True:
            with _threads(settings), kept_blocks(), torch.no_grad():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    finally:
        del batches
        give_back()
