"""What must hold of graphs and plans, checked after every rule and when a plan is read from a file."""

from __future__ import annotations

from krypton.errors import PlanError
from krypton.ir.graph import Graph
from krypton.ir.plan import QueryPlan

MODES = {"full", "delta", "project", "once"}
KINDS = {"naive", "exact"}


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
    if plan.tensor is None:
        if plan.kind != "naive":
            raise PlanError(f"a plan of kind {plan.kind!r} needs a tensor plan")
        return
    graph = plan.tensor.graph
    verify_graph(graph)
    modes = {node.id: node.mode for node in graph}
    for node in graph:
        allowed = {"delta", "once"} if node.mode in ("delta", "project") else {"full", "project", "once"}
        for source in node.inputs:
            if modes[source] not in allowed:
                raise PlanError(f"node %{node.id} ({node.op}, {node.mode}) cannot read %{source} in mode {modes[source]}")
    if modes[graph.output] == "delta":
        raise PlanError("the output must be whole")
    indices = sorted(index for tile in plan.tensor.tiling.tiles(plan.occlusions) for index in tile.indices)
    if indices != list(range(plan.occlusions.count)):
        raise PlanError("the tiles do not hold every occlusion exactly once")
    if plan.tensor.head_batch < 1 or plan.batch < 1:
        raise PlanError("batches must hold at least one occlusion")
