"""What a finished run says about its device: the rates its convolutions reached, for the profile to learn from."""

from __future__ import annotations

from collections.abc import Mapping

from krypton.ir.plan import QueryPlan
from krypton.kernels import find
from krypton.operators.base import operator_of
from krypton.planner.fields import Fields
from krypton.planner.profile import KernelRate, Shape

LEAST_TILES = 8  # of fewer the first, with cold caches, weighs too much


def observed(plan: QueryPlan, milliseconds: Mapping[int, float]) -> list[KernelRate]:
    """The rates of the convolutions of a plan whose tiles all ran, from milliseconds by node over the whole run."""
    if plan.tensor is None:
        return []
    tiles = plan.tensor.tiling.tiles(plan.occlusions)
    if len(tiles) < LEAST_TILES:
        return []
    graph, fields = plan.tensor.graph, Fields(plan.tensor.graph)
    found: dict[tuple[str, Shape], list[float]] = {}
    for node in graph:
        name = node.own_kernel
        if node.op != "conv" or node.mode != "delta" or not name or not find("conv", name).fused:
            continue  # where an ending is a pass of its own, that would be counted, too
        count = find("conv", name).work or operator_of(node).multiply_adds
        work, rows = 0, 0
        for tile in tiles:
            box, batch = fields.typical_box(node, tile), len(tile.indices)
            work += count(node, *(i.size for i in box)) * batch if box.area else 0
            rows += box.area * batch
        spent = milliseconds.get(node.id, 0.0)
        if work and spent:
            depth = operator_of(node).multiply_adds(node, 1, 1) // node.shape[0]
            found.setdefault((name, Shape(depth, node.shape[0], rows // len(tiles))), []).append(work / spent)
    return [KernelRate(name, shape, sum(rates) / len(rates)) for (name, shape), rates in found.items()]
