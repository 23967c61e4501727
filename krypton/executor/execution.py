"""One run of a plan: batches of logits as they come, the base logits, and what was measured on the way.

Closing the iterator (or an interrupt) stops between operators; what was yielded is valid. On out-of-memory a tile is halved.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from krypton.errors import ExecutionError
from krypton.executor.memory import give_back, half_of, kept_blocks
from krypton.executor.naive import naive_batches, naive_logits
from krypton.executor.occluder import Occluder
from krypton.executor.precision import Precision, Scores, probability_of_prediction, settle
from krypton.executor.program import Program, StopExecutionError
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan, TensorPlan
from krypton.ir.verify import verify_plan
from krypton.ir.weights import WeightStore
from krypton.settings import Settings


@dataclass(frozen=True)
class Batch:
    """Logits (n, K) float32 on the CPU, of the occlusions at these places (n,) of the flattened query."""

    indices: Tensor
    logits: Tensor


class Execution:
    """An iterator of batches. `base_logits` (K,) are those of the unmodified image.

    `actual` has, when timed, the milliseconds of each node over the whole run so far; `seconds` the run's own time so far,
    base views included; `precision` what low precision costs, where the plan has any; `trimmed` whether occlusions were
    left out or made smaller because the fill equals the image there.
    """

    def __init__(
        self,
        base_logits: Tensor,
        batches: Generator[Batch, None, None],
        actual: dict[int, float],
        started: float,
        precision: Precision | None = None,
        trimmed: bool = False,
    ) -> None:
        self.base_logits = base_logits
        self.actual = actual
        self.precision = precision
        self.trimmed = trimmed
        self._batches = batches
        self._spent = time.perf_counter() - started

    @property
    def seconds(self) -> float:
        return self._spent

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
) -> Execution:
    """Start a plan on an image and a fill, both (C, H, W) float32 in the model's input space.

    Exact plans need `weights`, naive ones the `module`. `tiles` restricts the run to some of the plan's tiles. `cancelled` is
    asked between operators (between batches in naive plans); when it says so, the run ends early without an error. `scores`
    makes, of the base logits, the scores that the tolerance of a plan in low precision is about; by default the
    probability of the predicted class.
    Raises ExecutionError when an image does not fit the plan or memory runs out for a single occlusion.
    """
    settings = settings or Settings()
    verify_plan(plan)
    if tuple(image.shape) != tuple(plan.input_shape) and plan.tensor is not None:
        raise ExecutionError(f"the plan is for images {plan.input_shape}, this one is {tuple(image.shape)}")
    started = time.perf_counter()
    device = torch.device(plan.device)
    with _threads(settings), kept_blocks(), torch.no_grad():
        occluder = Occluder(plan.occlusions, image.to(device).float(), fill.to(device).float().expand(image.shape))
        if plan.kind == "naive":
            if module is None:
                raise ExecutionError("a naive plan needs the model itself")
            base = naive_logits(module, image[None].to(device))[0]
            batches = (Batch(*pair) for pair in naive_batches(module, occluder, plan.batch, tiles, cancelled))
            return Execution(base.cpu(), _scoped(batches, settings), {}, started)
        if weights is None:
            raise ExecutionError("an exact plan needs the weights of its model")
        held = weights.on(device)
        assert plan.tensor is not None
        actual: dict[int, float] = {}
        program = Program(plan.tensor, held, device, actual if timed else None, cancelled, settings["debug"])
        every = plan.tensor.tiling.tiles(plan.occlusions)
        asked = every if tiles is None else list(tiles)
        chosen, unchanged = occluder.trimmed(asked)
        tensor, precision = plan.tensor, None
        base = program.prepare(occluder.image, chosen if not tensor.tolerance else every).cpu()
        if tensor.tolerance:

            def attempt(candidate: TensorPlan, some: Sequence[OcclusionTile]) -> Tensor:
                trial = Program(candidate, held, device, None, cancelled)
                trial.adopt(program)
                return torch.cat([batch.logits for batch in _batches(trial, candidate, occluder, some)])

            tensor, precision = settle(tensor, every, base, (scores or probability_of_prediction)(base), attempt)
            final = Program(tensor, held, device, actual if timed else None, cancelled, settings["debug"])
            final.adopt(program)
            program = final
        known = [Batch(torch.tensor(unchanged), base.expand(len(unchanged), -1))] if unchanged else []
        scoped = _scoped(chain(known, _batches(program, tensor, occluder, chosen)), settings)
        return Execution(base, scoped, actual, started, precision, trimmed=chosen != asked)


def _batches(program: Program, tensor: TensorPlan, occluder: Occluder, tiles: Sequence[OcclusionTile]) -> Iterator[Batch]:
    """Tiles through the trunk; whole values are gathered until a batch for the head is full."""
    waiting: list[dict[int, Tensor]] = []
    indices: list[int] = []
    most = tensor.head_batch

    def flush() -> Batch:
        nonlocal most
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
        return Batch(torch.tensor(taken), logits.float().cpu())

    try:
        for tile in tiles:
            for part, values in _with_halving(program, occluder, tile):
                waiting.append(values)
                indices.extend(part.indices)
                while len(indices) >= most:
                    yield flush()
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
