"""Where changes are: measured on a few occlusions, for the energy cut.

At every windowed operator the squared delta is summed along rows and columns, by its distance from the projection of what is
occluded. Far out it fades long before the field ends, in every layer at another distance; the margins that hold the share
`keep` of it are what fields are cut to (`ir.geometry.Cut`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.geometry import Cut
from krypton.ir.graph import Graph, Node
from krypton.ir.occlusions import OcclusionTile
from krypton.planner.projection import AXES, projections, windowed


class EnergyMeter:
    """Collects the squared deltas of windowed operators, of tiles of one occlusion each."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._projections = graph, projections(graph)
        self._nodes = {node.id for node in graph if windowed(node)}
        # by node and axis: distances (n, 2) before the projection's first and after its last place, and energies (n,)
        self._found: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def note(self, node: Node, delta: Delta, tile: OcclusionTile) -> None:
        """Take account of a node's delta."""
        if node.id not in self._nodes:
            return
        squares = delta.on_field().square().sum((0, 1)).double().cpu()
        for axis in AXES:
            projection = self._projections[node.id][axis].of((tile.rows, tile.columns)[axis])
            places = torch.arange(*delta.field[axis]).double()
            distances = torch.stack([projection.first - places, places - projection.last], 1)
            self._found.setdefault((node.id, axis), []).append((distances, squares.sum(1 - axis)))

    def cut(self, keep: float) -> Graph:
        """The graph with fields cut to the margins that hold this share of the energy that was seen, along each axis."""

        def change(node: Node) -> Node:
            if (node.id, 0) not in self._found:
                return node
            rows, columns = (self._margins(node.id, axis, keep) for axis in AXES)
            return node if rows is None or columns is None else _with_cut(node, rows, columns)

        return self._graph.with_nodes(change(node) for node in self._graph)

    def _margins(self, node: int, axis: int, keep: float) -> Cut | None:
        parts = self._found[node, axis]
        distances, energies = torch.cat([d for d, _ in parts]), torch.cat([e for _, e in parts])
        if not energies.sum() > 0:
            return None
        before, after = (_margin(distances[:, side], energies, (1 - keep) / 2) for side in (0, 1))
        return Cut(before, after)


def _margin(distances: Tensor, energies: Tensor, share: float) -> float:
    """The least distance beyond which there is at most that share of the energy."""
    order = distances.argsort(descending=True)
    beyond = energies[order].cumsum(0) / energies.sum()
    kept = int((beyond <= share).sum())
    return float(distances[order[min(kept, len(order) - 1)]])


def _with_cut(node: Node, rows: Cut, columns: Cut) -> Node:
    return replace(node, cuts=(*node.cuts, (rows, columns)))
