"""What arithmetic says: multiply-adds of full inference, of tight fields (the bound), of worst-case fields (the papers'), and
of the tiles that a plan computes.
"""

from __future__ import annotations

from collections.abc import Iterable

from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import Grid, OcclusionTile
from krypton.ir.plan import Approximation
from krypton.kernels import find
from krypton.operators.base import operator_of
from krypton.planner.capture import CapturedModel
from krypton.planner.fields import Fields
from krypton.planner.optimizer import plan_query
from krypton.planner.projection import windowed
from krypton.settings import Settings

NOT_THE_GRAPH = ("full_when_cheaper", "position_tiles", "choose_batch", "choose_kernel")
"""Rules that choose how to run a graph; the bound is that of the graph itself."""


def incremental_graph(captured: CapturedModel, grid: Grid, tau: float = 1.0) -> Graph:
    """The graph with increments as far as they can go, their fields cut to the part tau of the maps."""
    settings = Settings({"disabled_rules": NOT_THE_GRAPH})
    plan = plan_query(captured, grid, mode="approximate", approximation=Approximation(tau), settings=settings)
    assert plan.tensor is not None
    return plan.tensor.graph


def whole(node: Node) -> int:
    """Multiply-adds of a node on whole maps."""
    return operator_of(node).multiply_adds(node, *(node.shape[1:] if node.spatial else (1, 1)))


def full(graph: Graph) -> int:
    """Multiply-adds of full inference."""
    return sum(whole(node) for node in graph)


def tight(graph: Graph, grid: Grid) -> float:
    """Multiply-adds per position when each is computed in its own fields, and nowhere else: the average over the grid.

    Multiply-adds are proportional to rows and to columns, so that sums over each axis will do.
    """
    fields = Fields(graph)
    spans = [[fields.axis(axis, interval) for interval in grid.intervals(axis)] for axis in (0, 1)]
    total = 0.0
    for node in graph:
        if node.mode == "delta" and node.op != "image":
            rows, columns = (sum(span[node.id].field.size for span in axis) for axis in spans)
            total += operator_of(node).multiply_adds(node, rows, columns) / grid.count
        else:
            total += whole(node)
    return total


def worst_case(graph: Graph, patch: tuple[int, int], tau: float = 1.0) -> int:
    """Multiply-adds per position with fields as large as any position's may be, ceil((w + K − 1) / S) (Krypton paper, 3.2), and
    those of windowed operators cut to the part tau of the maps."""
    sizes: dict[int, tuple[int, ...]] = {graph.image.id: patch}
    total = 0
    for node in graph.nodes[1:]:
        sources = [sizes[source] for source in node.inputs if source in sizes]
        if node.mode != "delta" or not sources:
            total += whole(node)
            continue
        widest = [_widest(node, axis, [size[axis] for size in sources]) for axis in (0, 1)]
        most = [max(1, round(tau * node.shape[1 + axis])) if windowed(node) else node.shape[1 + axis] for axis in (0, 1)]
        sizes[node.id] = tuple(map(min, widest, most))
        total += operator_of(node).multiply_adds(node, *sizes[node.id])
    return total


def _widest(node: Node, axis: int, sources: list[int]) -> int:
    operator = operator_of(node)
    arity = len(sources) if operator.arity is None else operator.arity
    own = max(sources[:arity], default=0)
    if hasattr(operator, "window"):
        window = operator.window(node, axis)
        own = min(-(-(own + window.extent - 1) // window.stride), node.shape[1 + axis])
    return max([own, *sources[arity:]])


def _sizes(fields: Fields, node: Node, tile: OcclusionTile) -> list[tuple[int, int]]:
    """What is computed for each of a tile's occlusions."""
    if node.op == "conv" and node.kernel and find("conv", node.own_kernel).fused:
        rows, columns = ([fields.changed(axis, i)[node.id].size for i in tile.own[axis]] for axis in (0, 1))
        return list(zip(rows, columns, strict=True))
    box = fields.box(node, tile.rows, tile.columns)
    return [(box.rows.size, box.columns.size)] * len(tile.indices)


def of_tiles(graph: Graph, tiles: Iterable[OcclusionTile]) -> dict[int, int]:
    """Multiply-adds by node of running these tiles: each position in its own fields where kernels do so, else in its tile's."""
    fields = Fields(graph)
    totals = {node.id: 0 for node in graph}
    for tile in tiles:
        for node in graph:
            if node.op in ("image", "constant") or node.mode == "once":
                continue
            if node.mode in ("delta", "project"):
                totals[node.id] += sum(operator_of(node).multiply_adds(node, *size) for size in _sizes(fields, node, tile))
            else:
                totals[node.id] += whole(node) * len(tile.indices)
    return totals
