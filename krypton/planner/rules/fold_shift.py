"""fold_shift: what a convolution's input is shifted by, channel by channel, goes into its bias: W·(x + t) = W·x + W·t.

Only where no padding is read, which is not shifted. A sum that does nothing else is then gone.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.ir.weights import derived
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def fold_shift(plan: QueryPlan, context: Context) -> QueryPlan:
    """Fold such shifts."""
    graph = tensor_plan(plan).graph
    nodes, consumers = graph.index(), graph.consumers()
    dropped: dict[int, int] = {}
    for node in graph:
        readers = consumers[node.id]
        if not _is_shift(node) or node.id == graph.output or len(readers) != 1 or not _takes(readers[0], node.id):
            continue
        assert node.epilogue is not None
        reader = nodes[readers[0].id]
        shift = node.epilogue.terms[0].shift
        assert shift is not None
        bias = derived("convolve", reader.weights["weight"], shift)
        if "bias" in reader.weights:
            bias = derived("add", bias, reader.weights["bias"])
        nodes[reader.id] = replace(reader, weights={**reader.weights, "bias": bias})
        dropped[node.id] = node.inputs[0]
    return with_graph(plan, graph.with_nodes(nodes[node.id] for node in graph).substitute(dropped))


def _is_shift(node: Node) -> bool:
    if node.op != "combine" or node.epilogue is None or node.epilogue.function or len(node.epilogue.terms) != 1:
        return False
    return bool(node.epilogue.terms[0].shift) and not node.epilogue.terms[0].scale


def _takes(reader: Node, source: int) -> bool:
    """Is it a convolution of this value, which its epilogue does not read, that no padding and no group keeps from it?"""
    plain = reader.op == "conv" and reader.inputs[0] == source and source not in reader.inputs[1:]
    return plain and not any(reader.attrs["padding"]) and reader.attrs["groups"] == 1
