"""The geometry of a plan: for every node and every occluded box, the field of its delta and the window it is stored on.

Rows and columns are independent, so each axis is worked out for an interval of the image and remembered. Where nodes are cut,
fields are what is left, and what grows from it.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from krypton.ir.delta import Box
from krypton.ir.geometry import EMPTY, Interval, hull, make, split_read
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.kernels import find
from krypton.operators.base import Axis, operator_of, spatial_size
from krypton.planner.placement import Place, placements
from krypton.planner.projection import projections


class Span(NamedTuple):
    """Along one axis: where the delta may be non-zero, and what is held in memory (zeros outside the field)."""

    field: Interval
    stored: Interval


class Fields:
    """Fields and stored windows of all delta nodes of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places: dict[int, Place] = placements(graph)
        self.projections = projections(graph)
        self._tracked = [node for node in graph if node.mode in ("delta", "project") or node.op == "image"]
        ids = {node.id for node in self._tracked}
        self._inputs = {node.id: [s if s in ids else None for s in node.inputs] for node in self._tracked}
        consumers = graph.consumers()
        self._readers = {
            node.id: _main_reader([c for c in consumers[node.id] if c.mode == "delta" and c.inputs[0] == node.id])
            for node in self._tracked
        }
        self._memory: tuple[dict[Interval, dict[int, Span]], ...] = ({}, {})
        self._typical: dict[tuple[Axis, tuple[Interval, ...]], dict[int, int]] = {}
        self._changed: tuple[dict[Interval, dict[int, Interval]], ...] = ({}, {})

    def axis(self, axis: Axis, occluded: Interval) -> dict[int, Span]:
        """Spans by node id, when the occluded pixels lie within this interval of the axis."""
        known = self._memory[axis].get(occluded)
        if known is None:
            known = self._memory[axis][occluded] = self._work_out(axis, occluded)
        return known

    def box(self, node: Node, rows: Interval, columns: Interval) -> Box:
        """The field of one node."""
        return Box(self.axis(0, rows)[node.id].field, self.axis(1, columns)[node.id].field)

    def changed(self, axis: Axis, occluded: Interval) -> dict[int, Interval]:
        """Just the fields."""
        known = self._changed[axis].get(occluded)
        if known is None:
            known = self._changed[axis][occluded] = self._propagate(axis, occluded)
        return known

    def typical(self, axis: Axis, own: tuple[Interval, ...]) -> dict[int, int]:
        """By node the mean size along an axis of the fields of some occlusions, each for itself; rounded."""
        known = self._typical.get((axis, own))
        if known is None:
            found = [(self.changed(axis, interval), count) for interval, count in Counter(own).items()]
            ids = [node.id for node in self._tracked]
            known = {node: round(sum(field[node].size * count for field, count in found) / len(own)) for node in ids}
            self._typical[axis, own] = known
        return known

    def typical_box(self, node: Node, tile: OcclusionTile) -> Box:
        """A box as large as the field that one of a tile's occlusions has by itself, at the origin."""
        rows, columns = (self.typical(axis, tile.own[axis])[node.id] for axis in (0, 1))
        return Box(make(0, rows), make(0, columns))

    def _propagate(self, axis: Axis, occluded: Interval) -> dict[int, Interval]:
        fields: dict[int, Interval] = {self.graph.image.id: occluded}
        for node in self._tracked:
            if node.op != "image":
                changed = [EMPTY if s is None else fields[s] for s in self._inputs[node.id]]
                operator = operator_of(node)
                arity = len(changed) if operator.arity is None else operator.arity
                own = operator.field(node, axis, changed[:arity]) if arity else EMPTY
                field = hull(own, *changed[arity:])
                for cut in node.cuts:
                    projection = self.projections[node.id][axis].of(occluded)
                    field = cut[axis].apply(field, projection, spatial_size(node, axis))
                fields[node.id] = field
        return fields

    def _work_out(self, axis: Axis, occluded: Interval) -> dict[int, Span]:
        fields = self.changed(axis, occluded)
        stored: dict[int, Interval] = {}
        for node in reversed(self._tracked):
            field, reader = fields[node.id], self._readers[node.id]
            if node.id in self.places:
                stored[node.id] = EMPTY  # as the root's, below
            elif reader is None or field.empty or fields[reader.id].empty:
                stored[node.id] = field
            else:
                wanted = operator_of(reader).read(reader, axis, fields[reader.id])
                stored[node.id] = field if wanted is None else hull(field, split_read(field, wanted)[1])
        for node_id, place in self.places.items():
            stored[node_id] = stored[place.root]
        return {node.id: Span(fields[node.id], stored[node.id]) for node in self._tracked}


def _main_reader(consumers: list[Node]) -> Node | None:
    """Of the consumers that want a window contiguous, the one whose arithmetic is heaviest; the others copy."""
    wanting = [c for c in consumers if operator_of(c).read(c, 0, Interval(0, 1)) is not None and not _extends(c)]
    return max(wanting, key=lambda c: operator_of(c).multiply_adds(c, *c.shape[1:]), default=None)


def _extends(node: Node) -> bool:
    """Reads the node's kernel a delta on any window, zeros outside of it being understood?"""
    name = node.own_kernel
    return bool(name) and find(node.op, name).fused
