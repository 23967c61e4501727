"""choose_batch: how many occlusions go together through what runs on whole values, as memory allows."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from krypton.ir.plan import QueryPlan
from krypton.planner.cost import BYTES
from krypton.planner.rules.base import Context, tensor_plan

CONVOLUTIONAL = 32
DENSE = 256
"""Linear layers read all their weights once per batch, so they want many rows; convolutions want what fits the caches."""


def choose_batch(plan: QueryPlan, context: Context) -> QueryPlan:
    """Set `head_batch`."""
    tensor = tensor_plan(plan)
    head = [node for node in tensor.graph if node.mode == "full"]
    wanted = CONVOLUTIONAL if any(node.spatial and node.shape[1] > 1 for node in head) else DENSE
    # inputs, output and something to spare, of the largest node
    largest = max((prod(node.shape) for node in head), default=1) * BYTES * 4
    affordable = max(context.settings["memory_limit_mb"] * 2**20 // 2 // largest, 1)
    batch = min(wanted, affordable, plan.occlusions.count, context.settings["batch"] or wanted)
    return replace(plan, tensor=replace(tensor, head_batch=int(batch)))
