"""choose_kernel: for every node the fastest registered kernel that supports it on the device."""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.kernels import choose
from krypton.kernels.whole import choose_whole
from krypton.planner.rules.base import Context, map_nodes


def choose_kernel(plan: QueryPlan, context: Context) -> QueryPlan:
    """Name a kernel for each heavy node; without this rule all run the reference."""
    reference = context.settings["kernels"] == "reference"

    def chosen(node: Node) -> Node:
        if node.mode == "full" and not reference:
            return replace(node, kernel=choose_whole(node, context.device))
        if node.mode not in ("delta", "project"):
            return node
        kernel = choose(node.op, node, context.device, reference=reference)
        epilogue = choose("combine", node, context.device, reference=reference) if node.epilogue else ""
        names = dict.fromkeys(name for name in (kernel, epilogue) if name)
        return replace(node, kernel="+".join(names)) if names else node

    return map_nodes(plan, chosen)
