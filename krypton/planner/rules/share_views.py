"""share_views: base views are computed once for all occlusions of a query (multi-query optimisation)."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.plan import QueryPlan
from krypton.planner.rules.base import Context, tensor_plan


def share_views(plan: QueryPlan, context: Context) -> QueryPlan:
    """Let views live as long as the query."""
    return replace(plan, tensor=replace(tensor_plan(plan), view_scope="query"))
