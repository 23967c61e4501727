"""projective_threshold: fields are cut to a part tau of the map, around the projection of what is occluded.

The papers' projective field thresholding (equations 30 to 36): far from the projection deltas are small, and what is
cut reverts to the base values. Along each axis of each windowed operator at most max(1, round(tau·O)) of O places are kept for
an occlusion; the box of a tile is the hull of what is kept for its occlusions.

The papers crop what the operator reads (`crop`), to what makes an output of P places: S·P − F + 1 with kernel F and stride S.
Then outputs near the margin miss a part of what changes them.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.geometry import Cut, dilated
from krypton.ir.graph import Epilogue, Node, Term
from krypton.ir.occlusions import Occlusions
from krypton.ir.plan import QueryPlan
from krypton.operators.base import spatial_size
from krypton.planner.projection import AXES, Centres, projections, windowed
from krypton.planner.rules.base import Context, map_nodes, tensor_plan, with_graph


def projective_threshold(plan: QueryPlan, context: Context) -> QueryPlan:
    """Cut the windowed operators; nothing without tau."""
    asked = plan.approximation
    if asked is None or asked.tau is None:
        return plan
    graph = tensor_plan(plan).graph
    found, patch = projections(graph), smallest(plan.occlusions)
    kept = {node.id: sizes for node in graph if windowed(node) and (sizes := _kept(node, asked.tau)) is not None}

    def cut(node: Node, sizes: tuple[int, int], place: int) -> Node:
        """To so many places around the projection in the map of a node."""
        rows, columns = (_around(sizes[axis], patch[axis], found[place][axis]) for axis in AXES)
        return replace(node, cuts=(*node.cuts, (rows, columns)))

    plan = map_nodes(plan, lambda node: cut(node, kept[node.id], node.id) if node.id in kept else node)
    if not asked.crop:
        return plan
    graph = tensor_plan(plan).graph
    nodes, fresh, made = graph.index(), max(node.id for node in graph) + 1, list[Node]()
    for node in graph:
        if node.id in kept and "kernel" in node.attrs:
            source = nodes[node.inputs[0]]
            made.append(cut(_copy(source, fresh), _read(node, kept[node.id]), source.id))
            node = replace(node, inputs=(fresh, *node.inputs[1:]))
            fresh += 1
        made.append(node)
    return with_graph(plan, graph.with_nodes(made))


def _kept(node: Node, tau: float) -> tuple[int, int] | None:
    """How many places are kept of each axis; None where that is all of them."""
    whole = [spatial_size(node, axis) for axis in AXES]
    height, width = (max(1, round(tau * size)) for size in whole)
    return None if [height, width] == whole else (height, width)


def _read(node: Node, sizes: tuple[int, int]) -> tuple[int, int]:
    """How many places of the input change no more than so many of the output."""
    kernels = [dilated(*pair) for pair in zip(node.attrs["kernel"], node.attrs.get("dilation", (1, 1)), strict=True)]
    height, width = (max(1, s * p - k + 1) for s, p, k in zip(node.attrs["stride"], sizes, kernels, strict=True))
    return height, width


def _copy(source: Node, fresh: int) -> Node:
    """A node that is another one's delta."""
    return Node(fresh, "combine", (source.id,), source.shape, module=source.module, epilogue=Epilogue((Term(0),)), mode="delta")


def smallest(occlusions: Occlusions) -> tuple[int, int]:
    """The least height and width of an occlusion: all patches of a grid have one size, masks have their own."""
    height, width = occlusions.rectangles().reshape(-1, 4)[:, 2:].amin(0).tolist()
    return height, width


def _around(size: int, patch: int, centres: Centres) -> Cut:
    """What keeps so many places for one patch: as much on both sides of its projection as is missing."""
    margin = (size - 1 - (patch - 1) / centres.scale) / 2
    return Cut(margin, margin, slide=True)
