"""What a whole query will take, from its plan alone: milliseconds by part, and memory. Nothing is run.

A query's time is a sum of parts, each priced by the cost model and the device profile. They are kept apart so that finished
queries can correct each by a factor of its own (`correction`). What is answered by several plans, in stages or image by image,
takes the sum of their predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from krypton.ir.plan import QueryPlan, TensorPlan
from krypton.planner.cost import USUALLY_KEPT, DeviceProfile, plan_costs
from krypton.planner.fields import Fields
from krypton.planner.footprint import incremental_bytes, naive_bytes, prepared_bytes
from krypton.planner.inference import Inference, of_graph
from krypton.planner.precision import PER_TILE, SAMPLE_TILES, USUAL_TRIALS
from krypton.planner.tiles import sample

_TILES = 60  # that costs are averaged over, as planning does
# how many times longer than a byte that is merely written one takes ...
_FIRST_WRITTEN = 8.0  # ... in memory that the system has to find and to clear
_PREPARED = 24.0  # ... of weights laid out for a kernel
_PER_POSITION = ("inference", "tiles", "deltas", "head")


@dataclass(frozen=True)
class Prediction:
    """A query as the cost model sees it: positions, their multiply-adds, milliseconds by part, peak memory in bytes.

    Parts: `memory` (got from the system, page by page), `inference` (of occluded images, in naive mode), `views` (of the
    image itself), `weights` (laid out for kernels), `tiles` (operators started for each), `deltas`, `head` (whole values),
    `precision` (measuring what low precision costs). `measuring`: seconds of these that find out what may be left out.
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
    tiles = tensor.tiling.tiles(plan.occlusions)
    started = math.ceil(len(tiles) * count / plan.occlusions.count)
    fields = Fields(graph)
    costs = plan_costs(graph, fields, sample(tiles, _TILES), tensor.head_batch, profile, torch.device(plan.device))
    trunk = [node.id for node in graph if node.mode in ("delta", "project") and node.op != "image"]
    inside, inference = set(trunk), of_graph(graph)
    starting = len(trunk) * profile.node_overhead_ms
    deltas = sum(costs[node].milliseconds for node in trunk) * count * (USUALLY_KEPT if tensor.keep < 1 else 1.0)
    head = sum(cost.milliseconds for node, cost in costs.items() if node not in inside and node != graph.image.id) * count
    memory, weights = incremental_bytes(plan, tensor, fields), 0 if prepared else prepared_bytes(graph)
    parts = {
        "memory": _first_written(memory, profile),
        "views": inference.milliseconds(1, profile) * (1 if tensor.view_scope == "query" else 1 + started),
        "weights": _PREPARED * weights / profile.bytes_per_ms,
        "tiles": starting * started,
        "deltas": max(deltas - starting * started, 0.0),
        "head": head,
    }
    if tensor.tolerance:
        parts["precision"] = USUAL_TRIALS * _trial((parts["deltas"] + head) / count, starting, tensor, len(tiles))
    multiply_adds = sum(cost.multiply_adds for cost in costs.values()) * count + inference.multiply_adds
    singly = sum(stage.count for stage in plan.stages if stage.kind == "measure")
    measuring = parts.get("precision", 0.0) + singly * PER_TILE * (parts["deltas"] + head) / count
    return Prediction(count, multiply_adds, parts, memory + weights, measuring / 1e3)


def _first_written(size: int, profile: DeviceProfile) -> float:
    return _FIRST_WRITTEN * size / profile.bytes_per_ms


def _trial(per_position: float, starting: float, tensor: TensorPlan, tiles: int) -> float:
    """Milliseconds of one run over the sample that errors of low precision are measured on."""
    drawn = min(SAMPLE_TILES, tiles)
    return drawn * (PER_TILE * per_position + starting)
