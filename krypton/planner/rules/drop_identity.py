"""drop_identity: nodes that return their input as it is (dropout in eval mode, empty padding) are read through."""

from __future__ import annotations

from krypton.ir.graph import Node, Term
from krypton.ir.plan import QueryPlan
from krypton.planner.rules.base import Context, tensor_plan, with_graph


def drop_identity(plan: QueryPlan, context: Context) -> QueryPlan:
    """Remove identities."""
    graph = tensor_plan(plan).graph
    return with_graph(plan, graph.substitute({node.id: node.inputs[0] for node in graph if _is_identity(node)}))


def _is_identity(node: Node) -> bool:
    if node.op == "combine":
        assert node.epilogue is not None
        return node.epilogue.terms == (Term(0),) and node.epilogue.function is None
    return node.op == "pad" and not any(node.attrs["padding"])
