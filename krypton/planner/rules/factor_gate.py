"""factor_gate: a map plus the same map times a gate is the map times one gate: a·x + w·(x·g) = x·(a + w·g).

ConvNeXt V2's response normalisation is written as the sum. Two maps less are read and written, and what is left is a gate
like others, which a convolution can multiply by as it reads.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Epilogue, Graph, Node, Term
from krypton.ir.plan import QueryPlan
from krypton.ir.weights import Reference, derived
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def factor_gate(plan: QueryPlan, context: Context) -> QueryPlan:
    """Rewrite such sums; what else they add stays."""
    graph = tensor_plan(plan).graph
    nodes, consumers = graph.index(), graph.consumers()
    fresh = max(nodes) + 1
    made: dict[int, list[Node]] = {}
    gone: set[int] = set()
    for node in graph:
        found = _both(node, graph, nodes, consumers)
        if found is None:
            continue
        plain, gated, gate = found
        sums = replace(gate, id=fresh, op="combine", inputs=(gate.inputs[1],), shape=(node.shape[0], 1, 1))
        sums = replace(sums, epilogue=Epilogue((Term(0, gated.scale, plain.scale or _ones(gated)),)))
        product = replace(gate, id=fresh + 1, inputs=(gate.inputs[0], fresh))
        made[node.id] = [sums, product, _rest(node, plain, gated, product.id)]
        gone.add(gate.id)
        fresh += 2
    rewritten = (new for node in graph if node.id not in gone for new in made.get(node.id, [node]))
    return with_graph(plan, graph.with_nodes(rewritten))


def _both(node: Node, graph: Graph, nodes: dict[int, Node], consumers: dict[int, list[Node]]) -> tuple[Term, Term, Node] | None:
    """The terms of a sum that are a map and its product with a gate that nobody else reads, and the gate."""
    if node.op != "combine" or node.epilogue is None or len(set(node.inputs)) < len(node.inputs):
        return None
    for gated in node.epilogue.terms:
        gate = nodes[node.inputs[gated.input]]
        if gate.op != "gate" or consumers[gate.id] != [node] or gate.id == graph.output:
            continue
        for plain in node.epilogue.terms:
            if node.inputs[plain.input] == gate.inputs[0] and (plain.scale or gated.scale):
                return plain, gated, gate
    return None


def _ones(gated: Term) -> Reference:
    assert gated.scale is not None
    return derived("ones_like", gated.scale)


def _rest(node: Node, plain: Term, gated: Term, product: int) -> Node:
    """The sum with one term in place of two."""
    assert node.epilogue is not None
    shifts = [term.shift for term in (plain, gated) if term.shift]
    inputs, terms = [product], [Term(0, None, derived("add", *shifts) if len(shifts) == 2 else shifts[0] if shifts else None)]
    for term in node.epilogue.terms:
        if term is not plain and term is not gated:
            inputs.append(node.inputs[term.input])
            terms.append(replace(term, input=len(inputs) - 1))
    return replace(node, inputs=tuple(inputs), epilogue=replace(node.epilogue, terms=tuple(terms)))
