"""What a whole query will take, from its plan alone: milliseconds by part, and memory. Nothing is run.

A query's time is a sum of parts, each priced by the cost model and the device profile. They are kept apart so that finished
queries can correct each by a factor of its own (`correction`). What is answered by several plans, in stages or image by image,
takes the sum of their predictions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from krypton.ir.occlusions import OcclusionTile, tile_around
from krypton.ir.plan import QueryPlan, TensorPlan
from krypton.planner.cost import DeviceProfile, plan_costs, usually_kept
from krypton.planner.fields import Fields
from krypton.planner.footprint import incremental_bytes, naive_bytes, prepared_bytes
from krypton.planner.inference import Inference, of_graph
from krypton.planner.precision import PER_TILE, SAMPLE_TILES, USUAL_TRIALS, WHOLE_BATCH
from krypton.planner.tiles import sample

_TILES = 60  # that costs are averaged over, as planning does
# how many times longer than a byte that is merely written one takes ...
_FIRST_WRITTEN = 8.0  # ... in memory that the system has to find and to clear
_PREPARED = 24.0  # ... of weights laid out for a kernel
_SCATTERED = 3  # times as many tiles hold positions that are refined as these positions alone would fill
_INTERPOLATED, _PER_LOGIT = 5e-3, 1e-5  # milliseconds for a position that is not computed, and for each of its logits
_METERED = 1.3  # times as long takes an occlusion whose changes are measured: operator by operator, each delta summed up
_SETTLED = 1.6  # times as long as planning takes it to find cuts and the tiles for them, of all stages
_FEW = 2.0  # an occlusion among n in a tile takes 1 + this / n times as long as among many: threads have little to share
_PER_POSITION = ("inference", "tiles", "deltas", "cut", "head")


@dataclass(frozen=True)
class Prediction:
    """A query as the cost model sees it: positions, their multiply-adds, milliseconds by part, peak memory in bytes.

    Parts: `memory` (got from the system, page by page), `inference` (of occluded images, in naive mode), `views` (of the
    image itself), `weights` (laid out for kernels), `tiles` (operators started for each), `deltas`, `cut` (deltas whose fields
    will be cut, by as much as is usual), `head` (whole values), `between` (interpolation), `precision` (measuring what low
    precision costs), `planning` (of tiles for fields that are cut). `measuring`: seconds of these that find out what may be
    left out.
    """

    positions: int = 0
    multiply_adds: int = 0
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    measuring: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.milliseconds.values()) / 1e3

    def __add__(self, other: Prediction) -> Prediction:
        """Both, one after the other."""
        mine, others = self.milliseconds, other.milliseconds
        return Prediction(
            self.positions + other.positions,
            self.multiply_adds + other.multiply_adds,
            {part: mine.get(part, 0.0) + others.get(part, 0.0) for part in dict.fromkeys((*mine, *others))},
            max(self.memory_bytes, other.memory_bytes),
            self.measuring + other.measuring,
        )

    def without(self, known: int) -> Prediction:
        """The same where the answers for some positions need not be computed."""
        share = 1 - known / max(self.positions, 1)
        parts = {part: ms * (share if part in _PER_POSITION else 1.0) for part, ms in self.milliseconds.items()}
        left = round(self.multiply_adds * share)
        return replace(self, positions=self.positions - known, multiply_adds=left, milliseconds=parts)

    def __mul__(self, times: int) -> Prediction:
        """As often, one after the other."""
        return replace(
            self,
            positions=self.positions * times,
            multiply_adds=self.multiply_adds * times,
            milliseconds={part: milliseconds * times for part, milliseconds in self.milliseconds.items()},
            measuring=self.measuring * times,
        )


def predict_naive(plan: QueryPlan, profile: DeviceProfile, inference: Inference) -> Prediction:
    """What a naive plan will take; `inference` is the model's own (see `inference.watch`)."""
    count, size = plan.computed, min(plan.batch, plan.occlusions.count)
    whole, left = divmod(count, size)
    memory = naive_bytes(plan, inference)
    milliseconds = whole * inference.milliseconds(size, profile) + (inference.milliseconds(left, profile) if left else 0.0)
    return Prediction(
        count,
        inference.multiply_adds * (count + 1),
        {"memory": _first_written(memory, profile), "inference": milliseconds, "views": inference.milliseconds(1, profile)},
        memory,
    )


def predict(plan: QueryPlan, profile: DeviceProfile, *, prepared: bool = False) -> Prediction:
    """What a plan with a tensor plan will take, priced anew by this profile.

    Of an approximate plan that is what its stages compute, and fields that are cut once changes are measured count as usual.
    `prepared`: its kernels have their weights laid out already, by an earlier run in this process.
    """
    assert plan.tensor is not None
    tensor, graph, count = plan.tensor, plan.tensor.graph, plan.computed
    fields, inference, device = Fields(graph), of_graph(graph), torch.device(plan.device)
    trunk = {node.id for node in graph if node.mode in ("delta", "project") and node.op != "image"}
    starting = len(trunk) * profile.node_overhead_ms
    started, multiply_adds, deltas, cut, head, singly = 0, 0, 0.0, 0.0, 0.0, 0.0
    works, usual = list(_works(plan, tensor)), plan.occlusions.count / len(tensor.tiling.tiles(plan.occlusions))
    alike = {id(work.tiles): work.tiles for work in works}  # several stages may have the same
    priced = {
        key: plan_costs(graph, fields, sample(tiles, _TILES), tensor.head_batch, profile, device)
        for key, tiles in alike.items()
    }
    for work in works:
        if work.exact and tensor.frozen:  # what is exact is whole inference then
            head += inference.milliseconds(WHOLE_BATCH, profile) / WHOLE_BATCH * work.count
            multiply_adds += inference.multiply_adds * work.count
            continue
        costs = priced[id(work.tiles)]
        started += work.started
        multiply_adds += sum(cost.multiply_adds for cost in costs.values()) * work.count
        each = max(sum(costs[node].milliseconds for node in trunk) - starting / work.together, 0.0)
        each *= (1 + _FEW / work.together) / (1 + _FEW / usual) * (_METERED if work.metered else 1.0)
        if tensor.keep < 1 and not work.exact:
            cut += each * work.count * usually_kept(tensor.keep)
        else:
            deltas += each * work.count
        whole = sum(cost.milliseconds for node, cost in costs.items() if node not in trunk and node != graph.image.id)
        head += whole * work.count
        singly += (each + whole) * work.count + starting * work.started if work.alone else 0.0
    memory, weights = incremental_bytes(plan, tensor, fields), 0 if prepared else prepared_bytes(graph)
    parts = {
        "memory": _first_written(memory, profile),
        "views": inference.milliseconds(1, profile) * (1 if tensor.view_scope == "query" else 1 + started),
        "weights": _PREPARED * weights / profile.bytes_per_ms,
        "tiles": starting * started,
        "deltas": deltas,
        "head": head,
    }
    filled = [stage.count for stage in plan.stages if stage.kind == "interpolate"]
    refined = any(stage.kind == "refine" and stage.count for stage in plan.stages)
    looked = [plan.occlusions.count - stage.count for stage in plan.stages if stage.kind == "coarse" and refined]
    if filled:
        parts["between"] = interpolating(sum(filled) + sum(looked), math.prod(graph.index()[graph.output].shape))
    if tensor.tolerance:
        tiles = len(tensor.tiling.tiles(plan.occlusions))
        parts["precision"] = USUAL_TRIALS * _trial((deltas + cut + head) / count, starting, tensor, tiles)
    if tensor.keep < 1:
        parts["cut"] = cut
        parts["planning"] = _SETTLED * sum(report.milliseconds for report in plan.trace if report.name == "position_tiles")
    measuring = parts.get("precision", 0.0) + (singly + parts["planning"] if tensor.keep < 1 else 0.0)
    return Prediction(count, multiply_adds + inference.multiply_adds, parts, memory + weights, measuring / 1e3)


@dataclass(frozen=True)
class _Work:
    """What some stage computes: `count` positions in `started` tiles like these, perhaps exactly; `alone`: each in its own;
    `metered`: and changes are measured."""

    tiles: Sequence[OcclusionTile]
    count: int
    started: int
    exact: bool = False
    alone: bool = False
    metered: bool = False

    @property
    def together(self) -> float:
        """Positions in a tile, on average."""
        return sum(len(tile.indices) for tile in self.tiles) / len(self.tiles)


def _works(plan: QueryPlan, tensor: TensorPlan) -> Iterator[_Work]:
    """The work of all stages. Those that are refined lie together, but not in whole tiles; those held out apart."""
    occlusions, every = plan.occlusions, tensor.tiling.tiles(plan.occlusions)
    boxes = occlusions.rectangles().reshape(-1, 4)
    per_position = len(every) / occlusions.count  # tiles
    if not plan.stages:
        yield _Work(every, occlusions.count, len(every))
    for stage in plan.asking:
        match stage.kind:
            case "measure" | "hold_out":
                alone = [tile_around(tile.indices[:1], boxes) for tile in sample(every, _TILES)]
                yield _Work(alone, stage.count, stage.count, exact=True, alone=True, metered=stage.kind == "measure")
            case "coarse" | "correct":
                tiles = stage.tiling.tiles(occlusions, (stage.rows, stage.columns))
                yield _Work(tiles, stage.count, len(tiles), exact=stage.kind == "correct")
            case "refine":
                thin = [tile_around(tile.indices[::_SCATTERED], boxes) for tile in sample(every, _TILES)]
                yield _Work(thin, stage.count, min(math.ceil(_SCATTERED * stage.count * per_position), len(every)))
            case "every" | "level":
                yield _Work(every, stage.count, math.ceil(stage.count * per_position))


def interpolating(positions: int, classes: int) -> float:
    """Milliseconds to interpolate the logits of so many positions (`executor.interpolation`)."""
    return positions * (_INTERPOLATED + _PER_LOGIT * classes)


def _first_written(size: int, profile: DeviceProfile) -> float:
    return _FIRST_WRITTEN * size / profile.bytes_per_ms


def _trial(per_position: float, starting: float, tensor: TensorPlan, tiles: int) -> float:
    """Milliseconds of one run over the sample that errors of low precision are measured on."""
    drawn = min(SAMPLE_TILES, tiles)
    return drawn * (PER_TILE * per_position + starting)
