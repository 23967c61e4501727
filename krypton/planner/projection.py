"""Where a place of the image lies in the maps inside a network: the centres of what their pixels read.

Fields grow around the projection of what is occluded; approximate rules cut them to its neighbourhood.
"""

from __future__ import annotations

from typing import NamedTuple

from krypton.ir.geometry import Interval, Projection
from krypton.ir.graph import Graph, Node
from krypton.operators.base import Axis, operator_of

AXES: tuple[Axis, Axis] = (0, 1)


class Centres(NamedTuple):
    """Along one axis: pixel o of a map reads around `scale`·o + `offset` of the image."""

    scale: float
    offset: float

    def of(self, occluded: Interval) -> Projection:
        """Where the pixels of an interval of the image lie in the map."""
        return Projection((occluded.start - self.offset) / self.scale, (occluded.stop - 1 - self.offset) / self.scale)


def windowed(node: Node) -> bool:
    """Does a delta grow here?"""
    return node.mode == "delta" and node.op != "image" and operator_of(node).widens(node)


def projections(graph: Graph) -> dict[int, tuple[Centres, Centres]]:
    """By node id, rows and columns, for all maps that are computed from the image in mode delta. Where several meet, as the
    first of them."""
    found = {graph.image.id: (Centres(1.0, 0.0), Centres(1.0, 0.0))}
    for node in graph:
        source = next((found[source] for source in node.inputs if source in found), None)
        if source is None or node.mode not in ("delta", "project"):
            continue
        steps = [operator_of(node).centre(node, axis) for axis in AXES]
        rows, columns = (
            Centres(below.scale * scale, below.scale * offset + below.offset)
            for below, (scale, offset) in zip(source, steps, strict=True)
        )
        found[node.id] = rows, columns
    return found
