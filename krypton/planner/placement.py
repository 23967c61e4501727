"""Where deltas and whole values are written: a concat's inputs straight into its buffer, growing concats as prefixes of one.

DenseNet's blocks concatenate all features so far at every layer. Each of those concats is a prefix of the next, so the whole
block shares the buffer of its last one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from krypton.ir.graph import Graph, Node

WRITERS = frozenset({"conv", "combine", "max_pool", "avg_pool", "concat"})
"""Operators that write their delta where `Tile.target` says; the results of others are copied."""


class Place(NamedTuple):
    """The channels of a node's value begin at `start` of the buffer of node `root`."""

    root: int
    start: int


def writes_delta(node: Node) -> bool:
    """Does a node write its delta where it is told to?"""
    return node.mode == "delta" and node.op in WRITERS


def placements(graph: Graph, writes: Callable[[Node], bool] = writes_delta) -> dict[int, Place]:
    """The nodes whose values live in another node's buffer, of those that can write there."""
    nodes = graph.index()
    concats = [node for node in graph if node.op == "concat" and writes(node)]
    parents: dict[int, Place] = {}
    for concat in concats:
        longer = [c for c in concats if len(c.inputs) > len(concat.inputs) and c.inputs[: len(concat.inputs)] == concat.inputs]
        if longer:
            parents[concat.id] = Place(max(longer, key=lambda c: len(c.inputs)).id, 0)
    for concat in concats:
        if concat.id in parents:
            continue  # its inputs are inputs of the longer one
        start = 0
        for source, size in zip(concat.inputs, concat.attrs["sizes"], strict=True):
            if source not in parents and concat.inputs.count(source) == 1 and writes(nodes[source]):
                parents[source] = Place(concat.id, start)
            start += size
    return {node_id: _resolve(node_id, parents) for node_id in parents}


def _resolve(node_id: int, parents: dict[int, Place]) -> Place:
    start = 0
    while node_id in parents:
        place = parents[node_id]
        node_id, start = place.root, start + place.start
    return Place(node_id, start)
