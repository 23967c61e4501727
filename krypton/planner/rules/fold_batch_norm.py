"""fold_batch_norm: a per-channel scale and shift that alone reads a convolution goes into its weights."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.ir.weights import derived
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def fold_batch_norm(plan: QueryPlan, context: Context) -> QueryPlan:
    """Fold scales and shifts into the convolution before them: w' = s·w, b' = s·b + t."""
    graph = tensor_plan(plan).graph
    nodes, consumers = graph.index(), graph.consumers()
    folded: dict[int, Node] = {}
    dropped: dict[int, int] = {}
    for node in graph:
        if not _is_affine(node):
            continue
        source = dropped.get(node.inputs[0], node.inputs[0])
        convolution = folded.get(source, nodes[source])
        if convolution.op != "conv" or convolution.epilogue or len(consumers[source]) != 1:
            continue
        folded[source] = _fold(convolution, node)
        dropped[node.id] = source
        # whatever read the scale reads the convolution now, so that a second scale folds as well
        consumers[source] = consumers[node.id]
    replaced = graph.with_nodes(folded.get(node.id, node) for node in graph)
    return with_graph(plan, replaced.substitute(dropped))


def _is_affine(node: Node) -> bool:
    if node.op != "combine" or node.epilogue is None or node.epilogue.function or len(node.epilogue.terms) != 1:
        return False
    return bool(node.epilogue.terms[0].scale or node.epilogue.terms[0].shift)


def _fold(convolution: Node, affine: Node) -> Node:
    assert affine.epilogue is not None
    term, weights = affine.epilogue.terms[0], dict(convolution.weights)
    bias = weights.get("bias")
    if term.scale:
        weights["weight"] = derived("scale_rows", weights["weight"], term.scale)
        if bias:
            bias = derived("multiply", bias, term.scale)
    if term.shift:
        bias = derived("add", bias, term.shift) if bias else term.shift
    if bias:
        weights["bias"] = bias
    return replace(convolution, weights=weights)
