"""Group norms in parts, as they are while their mean and variance are frozen, and in one piece again.

A norm x ↦ x·s + t, where scale s and shift t are of each channel and depend on the whole of x, is written as a gate and a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from krypton.ir.graph import Epilogue, Graph, Node, Term


def split(graph: Graph, norms: Collection[int]) -> Graph:
    """Each of the norms of those ids as a gate, its scale, and a sum with its shift, which takes its place."""
    fresh = max(node.id for node in graph) + 1

    def parts(node: Node, first: int) -> Iterator[Node]:
        per_channel = (node.shape[0], 1, 1)
        yield replace(node, id=first, op="group_scale", shape=per_channel, epilogue=None)
        yield replace(node, id=first + 1, op="group_shift", shape=per_channel, epilogue=None)
        yield replace(node, id=first + 2, op="gate", inputs=(node.inputs[0], first), attrs={}, weights={}, epilogue=None)
        shifted = Epilogue((Term(0), Term(1)))
        yield replace(node, op="combine", inputs=(first + 2, first + 1), attrs={}, weights={}, epilogue=shifted)

    places = {node_id: fresh + 3 * number for number, node_id in enumerate(sorted(norms))}
    return graph.with_nodes(part for node in graph for part in (parts(node, places[node.id]) if node.id in places else (node,)))


def joined(graph: Graph) -> Graph:
    """The graph with the norms that were split in one piece again where they are computed for each occlusion after all."""
    nodes = graph.index()
    whole = {
        n.id: nodes[n.inputs[1]]
        for n in graph
        if n.op == "gate" and n.mode == "full" and nodes[n.inputs[1]].op == "group_scale"
    }
    shifts = {n.id for n in graph if n.op == "group_shift" and n.mode == "full"}

    def change(node: Node) -> Node:
        if node.id in whole:
            return replace(whole[node.id], id=node.id, op="group_norm", shape=node.shape, module=node.module)
        if node.op != "combine" or node.epilogue is None or shifts.isdisjoint(node.inputs):
            return node
        kept = [place for place, source in enumerate(node.inputs) if source not in shifts]
        terms = tuple(replace(t, input=kept.index(t.input)) for t in node.epilogue.terms if t.input in kept)
        return replace(node, inputs=tuple(node.inputs[p] for p in kept), epilogue=replace(node.epilogue, terms=terms))

    gone = shifts | {scale.id for scale in whole.values()}
    return graph.with_nodes(change(node) for node in graph if node.id not in gone)
