"""Plans: what happens to the set of occlusions (query plan), and to one batch of them (tensor plan). Frozen data.

`serde` writes them as versioned JSON; weights stay outside, by reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from krypton.ir.graph import Graph
from krypton.ir.occlusions import Occlusions, Tiling

PLAN_VERSION = 2

ViewScope = Literal["batch", "query"]
"""How long base views live: recomputed for every batch, or shared by all occlusions of the query."""


@dataclass(frozen=True)
class Cost:
    """What a node costs, for one occlusion of an average tile; `full_multiply_adds` is the same node on the whole map."""

    field: tuple[int, int] | None = None
    multiply_adds: int = 0
    full_multiply_adds: int = 0
    bytes: int = 0
    milliseconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            None,
            self.multiply_adds + other.multiply_adds,
            self.full_multiply_adds + other.full_multiply_adds,
            self.bytes + other.bytes,
            self.milliseconds + other.milliseconds,
        )


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one batch.

    `views`: (node, "out" or "pre") of the base values that are kept, None: whatever is needed is recomputed with each batch.
    `head_batch`: how many whole values are gathered before the nodes in mode `full` run on them. `alternatives`: the
    kernels that can
    run a node with their predicted milliseconds per occlusion, the fastest first. `tolerance`: the largest relative error of
    score changes that low precision may cause.
    """

    graph: Graph
    views: tuple[tuple[int, str], ...] | None = None
    view_scope: ViewScope = "batch"
    tiling: Tiling = field(default_factory=Tiling)
    head_batch: int = 1
    costs: Mapping[int, Cost] = field(default_factory=dict)
    alternatives: Mapping[int, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    tolerance: float = 0.0


@dataclass(frozen=True)
class RuleReport:
    """What one optimizer rule did: nodes changed, time taken; `skipped` when the settings disabled it."""

    name: str
    changed: int
    milliseconds: float
    skipped: bool = False


@dataclass(frozen=True)
class QueryPlan:
    """How a query is answered.

    `kind` naive: the model itself on every occluded image, in batches of `batch`. exact: the tensor plan on every tile.
    `notes` say what a reader should know: where increments end and why, or why the query runs naively.
    """

    kind: Literal["naive", "exact"]
    occlusions: Occlusions
    device: str = "cpu"
    model: str = ""
    input_shape: tuple[int, int, int] = (3, 224, 224)
    tensor: TensorPlan | None = None
    batch: int = 32
    notes: tuple[str, ...] = ()
    trace: tuple[RuleReport, ...] = field(default=(), compare=False)
