"""Plans: what happens to the set of occlusions (query plan), and to one batch of them (tensor plan). Frozen data.

`serde` writes them as versioned JSON; weights stay outside, by reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from krypton.ir.graph import Graph
from krypton.ir.occlusions import Occlusions, Tiling

PLAN_VERSION = 5

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
    score changes that low precision may cause. `sensitivity`: by convolution, the error of the scores
    per error of its own that the choice was made with. `keep`: the share of the squared change, along each axis, that fields
    are to be cut to once it is measured; 1: they are not. `chains`: nodes, each the only reader of the one before, that run
    together, a few occlusions at a time.
    """

    graph: Graph
    views: tuple[tuple[int, str], ...] | None = None
    view_scope: ViewScope = "batch"
    tiling: Tiling = field(default_factory=Tiling)
    head_batch: int = 1
    costs: Mapping[int, Cost] = field(default_factory=dict)
    alternatives: Mapping[int, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    tolerance: float = 0.0
    sensitivity: Mapping[int, float] = field(default_factory=dict)
    keep: float = 1.0
    chains: tuple[tuple[int, ...], ...] = ()

    @property
    def cut(self) -> bool:
        """Are any fields cut, or to be cut, or changes of anything left out?"""
        return self.keep < 1 or self.frozen or any(node.cuts for node in self.graph)

    @property
    def frozen(self) -> bool:
        """Has anything the value that it has on the unmodified image?"""
        return any(node.mode == "frozen" for node in self.graph)

    def uncut(self) -> TensorPlan:
        """The same with all fields whole."""
        return replace(self, graph=self.graph.with_nodes(replace(node, cuts=()) for node in self.graph), keep=1.0)


@dataclass(frozen=True)
class RuleReport:
    """What one optimizer rule did: nodes changed, time taken; `skipped` when the settings disabled it."""

    name: str
    changed: int
    milliseconds: float
    skipped: bool = False


@dataclass(frozen=True)
class Approximation:
    """What MODE APPROXIMATE may leave out. None: nothing of that kind.

    `tau`: fields are cut to that part of the map (projective field thresholding, Krypton paper, equations 30 to 36); with
    `crop` by leaving out what operators read, as in the paper, not what they make of it. `keep`: fields are cut to where that
    share of the squared change is. `drilldown`: the share of positions that is computed at the query's own stride, `speedup`:
    how many times fewer positions are to be computed in all (equations 38 and 39). `freeze`: gates and the moments of group
    norms keep their values. `correct`: every so manyth row and column is computed exactly, too, and what others are off by is
    interpolated. `within`: seconds from the start of the run to its result.
    `quality_share`: the share of positions that is computed exactly to measure the quality, evenly drawn by `seed`.
    `ssim`: the quality that is to be reached; what is left out then turns out as the query runs (`planner.goals`), with a
    deadline whatever is not needed for it.
    """

    tau: float | None = None
    keep: float | None = None
    drilldown: float | None = None
    speedup: float | None = None
    quality_share: float = 0.0
    seed: int = 0
    within: float | None = None
    ssim: float | None = None
    freeze: bool = False
    crop: bool = False
    correct: int | None = None

    def names(self) -> list[str]:
        """The approximations with their numbers, as WITH has them: `drilldown 0.25`."""
        flags = [name for name in ("freeze", "crop") if getattr(self, name)]
        found = [*flags, *(f"{name} {value:g}" for name, value in self.options().items())]
        return found if self.within is None else [*found, f"within {self.within:g} s"]

    def options(self) -> dict[str, float]:
        """What is left out, by the names of WITH; empty where nothing is."""
        named = {name: getattr(self, name) for name in ("tau", "keep", "correct", "drilldown", "speedup", "ssim")}
        return {name: value for name, value in named.items() if value is not None}


StageKind = Literal["measure", "every", "correct", "coarse", "refine", "interpolate", "hold_out", "level"]


@dataclass(frozen=True)
class Stage:
    """One step of an approximate answer; what a later one does depends on what those before it found.

    measure: a few positions exactly, to see where changes are, before fields are cut. every: all positions. correct: those at
    the crossings of some `rows` and `columns` exactly, and what the others are off by interpolated between these. coarse: those
    at the crossings of some `rows` and `columns`. refine: the positions whose interpolated score is lowest, as far as they are
    not known. hold_out: positions that are only approximately known, or not yet, exactly; those that were measured, if any
    were. interpolate: between all that are known, without computing anything. Once a goal is promised by those that were
    measured, no more positions are computed, and the others are interpolated. level: those at the crossings of some `rows`
    and `columns` that no level before it had, as far as there is time; without rows and columns, all that are left.
    `count` is how many positions the stage asks about or fills in; for refine what is expected. `tiling` gathers those at
    crossings into tiles, its runs counted in `rows` and `columns`.
    """

    kind: StageKind
    count: int
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    tiling: Tiling = field(default_factory=Tiling)

    @property
    def computed(self) -> int:
        """How many positions the model is asked about."""
        return 0 if self.kind == "interpolate" else self.count


@dataclass(frozen=True)
class QueryPlan:
    """How a query is answered.

    `kind` naive: the model itself on every occluded image, in batches of `batch`. exact: the tensor plan on every tile.
    approximate: the `stages`, one after the other, each by the tensor plan; where there is none by the model itself.
    `notes` say what a reader should know: where increments end and why, or why the query runs naively.
    """

    kind: Literal["naive", "exact", "approximate"]
    occlusions: Occlusions
    device: str = "cpu"
    model: str = ""
    input_shape: tuple[int, int, int] = (3, 224, 224)
    tensor: TensorPlan | None = None
    batch: int = 32
    approximation: Approximation | None = None
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()
    trace: tuple[RuleReport, ...] = field(default=(), compare=False)

    @property
    def computed(self) -> int:
        """How many positions the model is asked about. With a deadline or a goal those that were measured are on some level or
        rung, too."""
        if not self.stages:
            return self.occlusions.count
        goal = self.approximation is not None and self.approximation.ssim is not None
        again = goal or self.stages[-1].kind == "level"
        return sum(stage.computed for stage in self.asking if not (again and stage.kind == "measure"))

    @property
    def asking(self) -> tuple[Stage, ...]:
        """The stages that ask the model; what was measured is not asked about again when held out."""
        others = {"interpolate", "hold_out"} if self.stages and self.stages[0].kind == "measure" else {"interpolate"}
        return tuple(stage for stage in self.stages if stage.kind not in others)
