"""choose_kernel: for every node the kernel with the least predicted time on the boxes of a few tiles.

Rates are those measured on the device (see `profile`); the setting `kernels` prefers kernels by name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from krypton.errors import PlanError, unknown
from krypton.ir.graph import Node
from krypton.ir.plan import QueryPlan
from krypton.kernels import KERNELS, able, choose, find
from krypton.kernels.whole import able_whole
from krypton.planner.cost import Extent, Pricing, sizes, whole_box
from krypton.planner.fields import Fields
from krypton.planner.rules.base import Context, map_nodes, tensor_plan
from krypton.planner.tiles import sample

TILES = 9


def choose_kernel(plan: QueryPlan, context: Context) -> QueryPlan:
    """Name a kernel for each heavy node; without this rule all run the reference."""
    tensor, wanted = tensor_plan(plan), _wanted(context)
    fields, tiles = Fields(tensor.graph), sample(tensor.tiling.tiles(plan.occlusions), TILES)
    alternatives: dict[int, tuple[tuple[str, float], ...]] = {}

    def chosen(node: Node) -> Node:
        if node.mode == "full":
            return replace(node, kernel=_whole(node, tensor.head_batch, wanted, context))
        if node.mode not in ("delta", "project"):
            return node
        ranked = rank(node, sizes(fields, node, tiles), context, exact=not context.settings["tolerance"])
        if len(ranked) > 1:
            alternatives[node.id] = tuple(ranked)
        ranked = [(name, ms) for name, ms in ranked if find(node.op, name).exact]
        kernel = _preferred(node, wanted, context) or (ranked[0][0] if ranked else "") or _usual(node.op, node, wanted, context)
        epilogue = _usual("combine", node, wanted, context) if node.epilogue else ""
        names = dict.fromkeys(name for name in (kernel, epilogue) if name)
        return replace(node, kernel="+".join(names)) if names else node

    changed = map_nodes(plan, chosen)
    return replace(changed, tensor=replace(tensor_plan(changed), alternatives=alternatives))


def rank(node: Node, extents: Counter[Extent], context: Context, *, exact: bool) -> list[tuple[str, float]]:
    """(kernel, milliseconds per occlusion) of all that can run a node, the fastest first."""
    totals: dict[str, float] = defaultdict(float)
    pricing = Pricing(node, context.profile, context.device, exact=exact)
    for (box, own, batch), count in extents.items():
        for cost in pricing.kernels(box, batch, own):
            totals[cost.kernel] += cost.milliseconds * count / extents.total()
    return sorted(totals.items(), key=lambda item: item[1])


def _whole(node: Node, batch: int, wanted: tuple[str, ...], context: Context) -> str:
    """The kernel of a node on whole values, "" where PyTorch is to run it."""
    names = [kernel.name for kernel in able_whole(node, context.device)]
    if "reference" in wanted or not names:
        return ""
    ranked = rank(node, Counter({Extent(whole_box(node), whole_box(node), batch): 1}), context, exact=True)
    best = [name for name in (*wanted, *(name for name, _ in ranked)) if name in names]
    return (best or names)[0]


def _wanted(context: Context) -> tuple[str, ...]:
    """The kernels that the settings prefer; PlanError for one that nobody registered."""
    wanted: tuple[str, ...] = context.settings["kernels"]
    known = sorted({kernel.name for kernel in KERNELS if kernel.exact})
    for name in wanted:
        if name not in known:
            raise PlanError(unknown("kernel", name, ["auto", *known]))
    return wanted


def _preferred(node: Node, wanted: tuple[str, ...], context: Context) -> str:
    names = [kernel.name for kernel in able(node.op, node, context.device)]
    return next((name for name in wanted if name in names), "")


def _usual(operator: str, node: Node, wanted: tuple[str, ...], context: Context) -> str:
    return choose(operator, node, context.device, reference="reference" in wanted)
