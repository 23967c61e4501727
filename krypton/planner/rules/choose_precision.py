"""choose_precision: convolutions of deltas in bfloat16 between views in float32, as far as the tolerance asked for allows.

Low precision hurts deltas far less than values (design, section 1). What is chosen here is a proposal, from sensitivities that
earlier queries of the model measured, else from usual ones; the executor measures on a sample of positions, and takes back what
costs too much.
"""

from __future__ import annotations

from dataclasses import replace

from krypton.ir.plan import QueryPlan
from krypton.planner.precision import choices, in_low_precision, propose, sensitivity_of, with_kernels
from krypton.planner.rules.base import Context, tensor_plan


def choose_precision(plan: QueryPlan, context: Context) -> QueryPlan:
    """Nothing at tolerance 0, the default: exact means exact."""
    tolerance, tensor = context.settings["tolerance"], tensor_plan(plan)
    if not tolerance:
        return plan
    options = choices(tensor.graph, tensor.alternatives)
    sensitivity = sensitivity_of(tensor.graph, options, context.sensitivities)
    graph = with_kernels(tensor.graph, propose(options, sensitivity, tolerance))
    low = in_low_precision(graph)
    if not low:
        some = any(len(found) > 1 for found in options.values())
        why = f"fits tolerance {tolerance:g} in low precision" if some else "is faster in low precision here"
        return replace(plan, notes=(*plan.notes, f"no convolution {why}: all run in float32"))
    founded = ", by what earlier queries measured of the model" if context.sensitivities else ""
    note = f"{len(low)} convolutions in bfloat16 for tolerance {tolerance:g}{founded}: measured, and mended, as the query runs"
    changed = replace(tensor, graph=graph, tolerance=tolerance, sensitivity=sensitivity)
    return replace(plan, tensor=changed, notes=(*plan.notes, note))
