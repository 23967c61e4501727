"""projective_threshold: fields are cut to a part tau of the map, around the projection of what is occluded.

The papers' projective field thresholding (equations 30 to 36): far from the projection deltas are small, and what is
cut reverts to the base values. Along each axis of each windowed operator at most max(1, round(tau·O)) of O places are kept for
an occlusion; the box of a tile is the hull of what is kept for its occlusions.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.geometry import Cut
from krypton.ir.graph import Node
from krypton.ir.occlusions import Occlusions
from krypton.ir.plan import QueryPlan
from krypton.operators.base import spatial_size
from krypton.planner.projection import AXES, Centres, projections, windowed
from krypton.planner.rules.base import Context, map_nodes, tensor_plan


def projective_threshold(plan: QueryPlan, context: Context) -> QueryPlan:
    """Cut the windowed operators; nothing without tau."""
    tau = None if plan.approximation is None else plan.approximation.tau
    if tau is None:
        return plan
    found, patch = projections(tensor_plan(plan).graph), smallest(plan.occlusions)

    def change(node: Node) -> Node:
        if not windowed(node):
            return node
        whole = [spatial_size(node, axis) for axis in AXES]
        sizes = [max(1, round(tau * size)) for size in whole]
        if sizes == whole:
            return node
        rows, columns = (_around(sizes[axis], patch[axis], found[node.id][axis]) for axis in AXES)
        return replace(node, cuts=(*node.cuts, (rows, columns)))

    return map_nodes(plan, change)


def smallest(occlusions: Occlusions) -> tuple[int, int]:
    """The least height and width of an occlusion: all patches of a grid have one size, masks have their own."""
    height, width = occlusions.rectangles().reshape(-1, 4)[:, 2:].amin(0).tolist()
    return height, width


def _around(size: int, patch: int, centres: Centres) -> Cut:
    """What keeps so many places for one patch: as much on both sides of its projection as is missing."""
    margin = (size - 1 - (patch - 1) / centres.scale) / 2
    return Cut(margin, margin, slide=True)
