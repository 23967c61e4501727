"""fuse_activation: chains of scales, sums and activations become one node, and hang onto the convolution before them.

In delta mode that is one pass over memory instead of several: f(b + Δ1·s + Δ2) − f(b), written straight to where the next
operator reads it.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Epilogue, Graph, Node, Term
from krypton.ir.plan import QueryPlan
from krypton.ir.weights import Reference, derived
from krypton.operators.base import operator_of
from krypton.planner.rules.base import Context, tensor_plan, with_graph

MOST_TERMS = 6
"""Longer sums stay apart; kernels take a bounded number of inputs."""


def fuse_activation(plan: QueryPlan, context: Context) -> QueryPlan:
    """First sums into sums, then sums into convolutions."""
    graph = tensor_plan(plan).graph
    for fuse in (_sum_into_sum, _convolution_into_sum):
        graph = _everywhere(graph, fuse)
    return with_graph(plan, graph)


def _everywhere(graph: Graph, fuse: object) -> Graph:
    """Apply a fusion of (node, its sources, how often each is read) in topological order."""
    assert callable(fuse)
    nodes, consumers = graph.index(), graph.consumers()
    gone: set[int] = set()
    for node_id in [node.id for node in graph]:
        merged = fuse(nodes[node_id], nodes, consumers, graph.output)
        while merged is not None:
            node, absorbed = merged
            gone.add(absorbed)
            nodes[node_id] = node
            for source in node.inputs:
                consumers[source] = [c for c in consumers[source] if c.id not in (absorbed, node_id)] + [node]
            merged = fuse(node, nodes, consumers, graph.output)
    return graph.with_nodes(nodes[node.id] for node in graph if node.id not in gone)


def _sum_into_sum(node: Node, nodes: dict[int, Node], consumers: dict[int, list[Node]], output: int) -> tuple[Node, int] | None:
    if node.op != "combine":
        return None
    assert node.epilogue is not None
    for place, source in enumerate(node.inputs):
        inner = nodes[source]
        if inner.op != "combine" or inner.function or inner.id == output or not _only_reader(node, inner.id, consumers):
            continue
        assert inner.epilogue is not None
        if len(node.epilogue.terms) + len(inner.epilogue.terms) - 1 > MOST_TERMS:
            continue
        return _merge_sums(node, place, inner), inner.id
    return None


def _merge_sums(node: Node, place: int, inner: Node) -> Node:
    assert node.epilogue is not None
    assert inner.epilogue is not None
    inputs = [*node.inputs[:place], *node.inputs[place + 1 :]]
    terms: list[Term] = []
    for term in node.epilogue.terms:
        if term.input != place:
            terms.append(replace(term, input=term.input - (term.input > place)))
            continue
        for number, part in enumerate(inner.epilogue.terms):
            inputs.append(inner.inputs[part.input])
            scale = _product(part.scale, term.scale)
            shift = _product(part.shift, term.scale) if part.shift else None
            if number == 0 and term.shift:
                shift = derived("add", shift, term.shift) if shift else term.shift
            terms.append(Term(len(inputs) - 1, scale, shift))
    return replace(node, inputs=tuple(inputs), epilogue=replace(node.epilogue, terms=tuple(terms)))


def _product(a: Reference | None, b: Reference | None) -> Reference | None:
    return derived("multiply", a, b) if a and b else a or b


def _convolution_into_sum(
    node: Node, nodes: dict[int, Node], consumers: dict[int, list[Node]], output: int
) -> tuple[Node, int] | None:
    if node.op != "combine":
        return None
    assert node.epilogue is not None
    candidates = [
        (operator_of(nodes[s]).multiply_adds(nodes[s], *nodes[s].shape[1:]), place)
        for place, s in enumerate(node.inputs)
        if nodes[s].op == "conv" and nodes[s].epilogue is None and s != output and _only_reader(node, s, consumers)
    ]
    if not candidates:
        return None
    place = max(candidates)[1]
    convolution = nodes[node.inputs[place]]
    others = [*node.inputs[:place], *node.inputs[place + 1 :]]
    # the convolution's own input comes first, what else is summed follows
    terms = [
        replace(term, input=-1 if term.input == place else 1 + term.input - (term.input > place))
        for term in node.epilogue.terms
    ]
    merged = replace(
        convolution,
        id=node.id,
        inputs=(convolution.inputs[0], *others),
        epilogue=Epilogue(tuple(terms), node.epilogue.function),
    )
    return merged, convolution.id


def _only_reader(node: Node, source: int, consumers: dict[int, list[Node]]) -> bool:
    """Reads the node this source, nobody else does, and the node only once?"""
    return [c.id for c in consumers[source]] == [node.id] and node.inputs.count(source) == 1
