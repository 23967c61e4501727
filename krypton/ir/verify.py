"""What must hold of graphs and plans, checked after every rule and when a plan is read from a file."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

from krypton.errors import PlanError
from krypton.ir.graph import Graph
from krypton.ir.occlusions import Grid
from krypton.ir.plan import QueryPlan, Stage, StageKind, TensorPlan

MODES = {"full", "delta", "project", "once", "frozen"}
READS = {
    "full": {"full", "project", "once"},
    "delta": {"delta", "once", "frozen"},
    "project": {"delta", "once", "frozen"},
    "once": {"once"},
    "frozen": MODES,
}
"""Of which modes the inputs of a node may be."""

KINDS = {"naive", "exact", "approximate"}

STAGES = set(get_args(StageKind))


def verify_graph(graph: Graph) -> None:
    """PlanError unless nodes are unique, in topological order, and the output is one of them."""
    seen: set[int] = set()
    if not graph.nodes or graph.image.op != "image" or graph.image.inputs:
        raise PlanError("a graph begins with its image")
    for node in graph:
        if node.id in seen:
            raise PlanError(f"node %{node.id} stands twice in the graph")
        missing = [source for source in node.inputs if source not in seen]
        if missing:
            raise PlanError(f"node %{node.id} ({node.op}) reads %{missing[0]}, which does not come before it")
        if node.mode not in MODES:
            raise PlanError(f"node %{node.id} ({node.op}) has the unknown mode {node.mode!r}")
        for term in node.epilogue.terms if node.epilogue else ():
            if not -1 <= term.input < len(node.inputs):
                raise PlanError(f"node %{node.id} ({node.op}) sums input {term.input}, which it does not have")
        seen.add(node.id)
    if graph.output not in seen:
        raise PlanError(f"the output %{graph.output} is not in the graph")


def verify_plan(plan: QueryPlan) -> None:
    """PlanError unless the plan can be executed: modes fit together, and every occlusion is in exactly one tile."""
    if plan.kind not in KINDS:
        raise PlanError(f"the plan is of the unknown kind {plan.kind!r}")
    _verify_stages(plan)
    if plan.tensor is None:
        if plan.kind == "exact":
            raise PlanError(f"a plan of kind {plan.kind!r} needs a tensor plan")
        return
    graph = plan.tensor.graph
    verify_graph(graph)
    modes = {node.id: node.mode for node in graph}
    for node in graph:
        allowed = READS[node.mode]
        for source in node.inputs:
            if modes[source] not in allowed:
                raise PlanError(f"node %{node.id} ({node.op}, {node.mode}) cannot read %{source} in mode {modes[source]}")
    if modes[graph.output] == "delta":
        raise PlanError("the output must be whole")
    _verify_chains(plan.tensor)
    indices = sorted(index for tile in plan.tensor.tiling.tiles(plan.occlusions) for index in tile.indices)
    if indices != list(range(plan.occlusions.count)):
        raise PlanError("the tiles do not hold every occlusion exactly once")
    if plan.tensor.head_batch < 1 or plan.batch < 1:
        raise PlanError("batches must hold at least one occlusion")


def _verify_chains(tensor: TensorPlan) -> None:
    """A chain's nodes are there once, and what is between them is read by nobody else."""
    nodes, consumers = tensor.graph.index(), tensor.graph.consumers()
    members = [node for chain in tensor.chains for node in chain]
    if len(set(members)) < len(members) or not all(node in nodes for node in members):
        raise PlanError("the nodes of chains are those of the graph, each in one chain")
    if not all({nodes[node].mode for node in chain} in ({"delta"}, {"full"}) for chain in tensor.chains):
        raise PlanError("the nodes of a chain are deltas, or all of them whole")
    for chain in tensor.chains:
        for source, reader in pairwise(chain):
            found = nodes[reader]
            if consumers[source] != [found] or found.inputs.index(source) or source in found.inputs[1:]:
                raise PlanError(f"%{source} is in a chain before %{reader}, which must be its only reader, and read it first")
        if len(chain) < 2:
            raise PlanError("a chain has two nodes at least")


def _verify_stages(plan: QueryPlan) -> None:
    if (plan.kind == "approximate") != bool(plan.stages) or bool(plan.stages) != (plan.approximation is not None):
        raise PlanError("a plan has stages when, and only when, it is approximate")
    kinds = [stage.kind for stage in plan.stages]
    goal = plan.approximation is not None and plan.approximation.ssim is not None
    if not goal and (kinds[:1] == ["measure"]) != (plan.tensor is not None and plan.tensor.keep < 1):
        raise PlanError("a plan begins with measuring when, and only when, fields are to be cut by what is found")
    kinds = kinds[1:] if kinds[:1] == ["measure"] else kinds
    if any(kind not in STAGES for kind in kinds):
        raise PlanError(f"the plan has an unknown stage: {', '.join(kinds)}")
    assert plan.approximation is not None or not kinds
    if (plan.approximation is not None and plan.approximation.within is not None) != ("level" in kinds) or (
        "level" in kinds and {*kinds} != {"level"}
    ):
        raise PlanError("a plan has levels, and nothing else, when there is a deadline, and only then")
    if kinds and kinds[0] not in ("every", "coarse", "level"):
        raise PlanError(f"an approximate plan begins with all positions or coarse ones, not with {kinds[0]!r}")
    if kinds and kinds[0] != "coarse" and {"refine", "interpolate"} & {*kinds}:
        raise PlanError("only between coarse positions something can be refined and interpolated")
    if "correct" in kinds and kinds[:2] != ["every", "correct"]:
        raise PlanError("only a map of all positions can be corrected")
    for stage in plan.stages:
        if stage.kind in ("coarse", "correct") or (stage.kind == "level" and stage.rows):
            _verify_coarse(plan, stage)


def _verify_coarse(plan: QueryPlan, stage: Stage) -> None:
    if not isinstance(plan.occlusions, Grid):
        raise PlanError("coarse positions are those of a grid")
    lattice = stage.rows, stage.columns
    for places, size in zip(lattice, plan.occlusions.shape, strict=True):
        if sorted({*places, 0, size - 1}) != list(places) or places[-1] != size - 1:
            raise PlanError("coarse rows and columns are in order, from the first to the last")
    if plan.tensor is None:
        return
    found = sorted(index for tile in stage.tiling.tiles(plan.occlusions, lattice) for index in tile.indices)
    if found != [row * plan.occlusions.shape[1] + column for row in stage.rows for column in stage.columns]:
        raise PlanError("the tiles do not hold every coarse position exactly once")
