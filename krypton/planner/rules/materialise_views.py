"""materialise_views: just the base values that delta rules read are kept; without it all are, while a batch runs."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Graph
from krypton.ir.plan import QueryPlan
from krypton.operators.base import ViewKey, operator_of
from krypton.planner.rules.base import Context, tensor_plan


def materialise_views(plan: QueryPlan, context: Context) -> QueryPlan:
    """List the views the plan reads."""
    return replace(plan, tensor=replace(tensor_plan(plan), views=tuple(needed_views(tensor_plan(plan).graph))))


def needed_views(graph: Graph) -> list[ViewKey]:
    """The base values that the delta rules of a graph read: results, or what a function is applied to."""
    keys: dict[ViewKey, None] = {}
    for node in graph:
        if node.mode not in ("delta", "project") or node.op == "image":
            continue
        if node.function is not None:
            keys[node.id, "pre"] = None
        keys.update(dict.fromkeys(operator_of(node).views(node)))
    return list(keys)
