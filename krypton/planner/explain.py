"""How a plan is shown: one table of rows feeds text, JSON, DOT and Mermaid.

Text has one aligned line per operator in topological order, inputs by reference, since residual networks share nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from krypton.errors import PlanError
from krypton.ir.graph import Node
from krypton.ir.occlusions import Masks
from krypton.ir.plan import Cost, QueryPlan, Stage, TensorPlan
from krypton.ir.serde import plan_to_dict
from krypton.operators.base import operator_of
from krypton.operators.combine import describe_epilogue
from krypton.planner.cost import DeviceProfile

Format = Literal["text", "json", "dot", "mermaid"]


@dataclass(frozen=True)
class Row:
    """One operator, as every format shows it."""

    node: Node
    operator: str
    cost: Cost
    actual: float | None  # milliseconds, over the whole run
    alternatives: tuple[tuple[str, float], ...] = ()  # kernels with predicted milliseconds, the fastest first


@dataclass(frozen=True)
class Summary:
    """Sums over a plan. Seconds are predictions; `naive` is full inference of every occlusion. Multiply-adds are per
    occlusion asked for, also where fewer are computed."""

    predicted: float
    naive: float
    multiply_adds: int
    full_multiply_adds: int

    @property
    def arithmetic(self) -> float:
        """How many times fewer multiply-adds the plan needs than full inference."""
        return self.full_multiply_adds / max(self.multiply_adds, 1)


def explain(
    plan: QueryPlan,
    *,
    format: Format = "text",
    costs: bool = True,
    verbose: bool = False,
    actual: Mapping[int, float] | None = None,
    seconds: float | None = None,
) -> str:
    """A plan as text, or in a format for programs and pictures.

    `costs`: show estimates (off for plans that are to be compared). `verbose`: inputs, kernels and what each rule did.
    `actual` are measured milliseconds by node id, `seconds` the measured time of the whole query.
    """
    if format not in FORMATS:
        raise PlanError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")
    return FORMATS[format](plan, costs, verbose, actual, seconds)


def rows(plan: QueryPlan, actual: Mapping[int, float] | None = None) -> list[Row]:
    """One row per operator; empty for naive plans."""
    if plan.tensor is None:
        return []
    found = []
    for node in plan.tensor.graph:
        label = "occlude" if node.op == "image" else operator_of(node).label(node)
        if node.epilogue and node.op != "combine":
            label = " +".join([label, *describe_epilogue(node.epilogue)])
        measured = None if actual is None else actual.get(node.id)
        alternatives = plan.tensor.alternatives.get(node.id, ())
        found.append(Row(node, label, plan.tensor.costs.get(node.id, Cost()), measured, alternatives))
    return found


def summarise(plan: QueryPlan) -> Summary | None:
    """Sums and predictions; None for naive plans and plans without costs."""
    if plan.tensor is None or not plan.tensor.costs:
        return None
    costs, count, rate = plan.tensor.costs.values(), plan.occlusions.count, DeviceProfile().multiply_adds_per_ms
    full = sum(cost.full_multiply_adds for cost in costs)
    predicted = sum(cost.milliseconds for cost in costs) * plan.computed / 1e3
    incremental = sum(cost.multiply_adds for cost in costs) * plan.computed // count
    return Summary(predicted, full / rate * count / 1e3, incremental, full)


def heading(plan: QueryPlan) -> str:
    """The plan in one line."""
    image = "×".join(map(str, plan.input_shape))
    return "  ".join(
        part for part in ("occlusion", plan.model, f"image {image}", str(plan.occlusions), plan.device, "fp32") if part
    )


def _text(plan: QueryPlan, costs: bool, verbose: bool, actual: Mapping[int, float] | None, seconds: float | None) -> str:
    lines = [heading(plan)]
    if plan.tensor is None:
        lines.append(f"naive: the model itself on {plan.computed:,} occluded images, {plan.batch} at a time")
    else:
        lines += _table(plan, costs, verbose, actual)
        lines += _surroundings(plan.tensor, plan)
    lines += [f"stage {number}, {_stage(stage, plan)}" for number, stage in enumerate(plan.stages, 1)]
    if plan.approximation is not None and plan.approximation.within is not None:
        rest = (
            "what is left is unknown"
            if isinstance(plan.occlusions, Masks)
            else "the rest is interpolated, its quality measured"
        )
        goal = "" if plan.approximation.ssim is None else f", or until SSIM {plan.approximation.ssim:g} is promised"
        lines.append(f"within {plan.approximation.within:g} s: stages as far as there is time{goal}; {rest}")
    lines += [f"note: {note}" for note in plan.notes]
    summary = summarise(plan)
    if summary and costs:
        lines.append(
            f"naive {plan.occlusions.count:,} full inferences, about {_seconds(summary.naive)}; "
            f"predicted {_seconds(summary.predicted)}, {summary.arithmetic:.1f}× less arithmetic"
        )
    if seconds is not None:
        lines.append(f"measured {_seconds(seconds)}")
    if verbose:
        lines += _trace(plan, costs)
    return "\n".join(lines)


_Column = tuple[str, bool, Callable[[Row], str]]  # heading, right-aligned, cell


def _columns(costs: bool, verbose: bool, actual: bool) -> list[_Column]:
    chosen: list[_Column] = [
        ("id", False, lambda row: f"%{row.node.id}"),
        ("operator", False, lambda row: row.operator),
        ("module", False, lambda row: row.node.module or "-"),
        ("view", False, lambda row: "×".join(map(str, row.node.shape)) or "-"),
        ("field", False, _field),
        ("mode", False, lambda row: "opaque" if row.node.op == "opaque" else row.node.mode),
    ]
    if verbose:
        chosen += [
            ("inputs", False, lambda row: " ".join(f"%{source}" for source in row.node.inputs) or "-"),
            ("kernel", False, lambda row: row.node.kernel or "-"),
        ]
    if verbose and costs:
        chosen.append(("runner-up", False, _runner_up))
    if costs:
        chosen += [
            ("MFLOP (full)", True, _flops),
            ("est ms", True, lambda row: f"{row.cost.milliseconds:.3f}"),
        ]
    if actual:
        chosen.append(("act ms", True, lambda row: "-" if row.actual is None else f"{row.actual:.3f}"))
    return [*chosen, ("rules", False, lambda row: ", ".join(row.node.rules) or "-")]


def _field(row: Row) -> str:
    if row.node.mode == "delta" and row.cost.field:
        return f"{row.cost.field[0]}×{row.cost.field[1]}"
    return "-"


def _runner_up(row: Row) -> str:
    """The kernel that would have run, and how much longer it is predicted to take."""
    others = [(name, ms) for name, ms in row.alternatives if name != row.node.own_kernel]
    own = dict(row.alternatives).get(row.node.own_kernel)
    if not others:
        return "-"
    name, milliseconds = others[0]
    return f"{name} {milliseconds / own:.1f}×" if own else name


def _flops(row: Row) -> str:
    if not row.cost.full_multiply_adds:
        return "-"
    return f"{2 * row.cost.multiply_adds / 1e6:.2f} ({2 * row.cost.full_multiply_adds / 1e6:.1f})"


def _table(plan: QueryPlan, costs: bool, verbose: bool, actual: Mapping[int, float] | None) -> list[str]:
    per_occlusion = None if actual is None else {n: ms / plan.computed for n, ms in actual.items()}
    columns = _columns(costs, verbose, actual is not None)
    cells = [[name for name, _, _ in columns]]
    cells += [[cell(row) for _, _, cell in columns] for row in rows(plan, per_occlusion)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return [
        (" " + "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, (_, right, _) in zip(line, widths, columns, strict=True)
        )).rstrip()
        for line in cells
    ]  # fmt: skip


def _stage(stage: Stage, plan: QueryPlan) -> str:
    """A stage in a few words."""
    total = plan.occlusions.count
    match stage.kind:
        case "coarse":
            steps = [max(places[1] - places[0], 1) if len(places) > 1 else 1 for places in (stage.rows, stage.columns)]
            size = len(stage.rows) * len(stage.columns)
            text = (
                f"coarse: {len(stage.rows)}×{len(stage.columns)} = {size:,} positions, every {steps[0]}. row and "
                f"{steps[1]}. column, the last ones too"
            )
            return text if stage.count == size else f"{text}; {stage.count:,} of them are new"
        case "correct":
            step = stage.rows[1] - stage.rows[0] if len(stage.rows) > 1 else 1
            crossings = f"{len(stage.rows)}×{len(stage.columns)} = {stage.count:,}"
            return f"correct: {crossings} positions exactly, every {step}. row and column, and errors between them interpolated"
        case "level" if stage.rows:
            step = stage.rows[1] - stage.rows[0]
            return f"level: every {step}. row and column, the last ones too, {stage.count:,} positions that are not known yet"
        case "level":
            return f"level: {'all' if stage.count == total else 'the other'} {stage.count:,} positions"
        case "interpolate" if plan.approximation is not None and plan.approximation.ssim is not None:
            return "interpolate: all positions that the goal did not need"
        case "refine":
            return f"refine: about {stage.count:,} positions where the interpolated score is lowest"
        case "interpolate":
            return f"interpolate: about {stage.count:,} positions"
        case "hold_out":
            return f"hold out: {stage.count:,} positions, exactly, to measure the quality"
        case "measure" if plan.approximation is not None and plan.approximation.ssim is not None:
            return f"measure: {stage.count:,} positions, exactly, to see how good the others become"
        case "measure":
            return f"measure: {stage.count:,} positions, exactly, to see where changes are and how good the others become"
        case "every":
            return f"every one of {total:,} positions"


def _surroundings(tensor: TensorPlan, plan: QueryPlan) -> list[str]:
    tiling = tensor.tiling
    tiles = tiling.tiles(plan.occlusions)
    shape = f"{len(tiling.groups)}" if isinstance(plan.occlusions, Masks) else f"{len(tiling.rows)}×{len(tiling.columns)}"
    largest = max(len(tile.indices) for tile in tiles)
    views = "all" if tensor.views is None else str(len(tensor.views))
    chains = ", ".join(" ".join(f"%{node}" for node in chain) for chain in tensor.chains)
    return [
        f"views {views}, computed once per {tensor.view_scope}; {shape} tiles of up to {largest} positions; "
        f"whole values in batches of {tensor.head_batch}",
        *([f"a few occlusions at a time go together through {chains}"] if chains else []),
    ]


def _trace(plan: QueryPlan, costs: bool) -> list[str]:
    lines = []
    for report in plan.trace:
        did = "disabled" if report.skipped else f"{report.changed} nodes"
        lines.append(f"rule {report.name}: {did}" + (f", {report.milliseconds:.1f} ms" if costs and not report.skipped else ""))
    return lines


def _json(plan: QueryPlan, costs: bool, verbose: bool, actual: Mapping[int, float] | None, seconds: float | None) -> str:
    data = plan_to_dict(plan)
    if data["tensor"] is not None:
        if not costs:
            del data["tensor"]["costs"]
        for node, row in zip(data["tensor"]["graph"]["nodes"], rows(plan, actual), strict=True):
            node["label"] = row.operator
            if row.actual is not None:
                node["actual_ms"] = row.actual
    summary = summarise(plan)
    if costs and summary:
        data["predicted"] = {"seconds": summary.predicted, "naive_seconds": summary.naive, "arithmetic": summary.arithmetic}
    if seconds is not None:
        data["measured_seconds"] = seconds
    if verbose:
        data["rules"] = [{"name": r.name, "changed": r.changed, "skipped": r.skipped} for r in plan.trace]
    return json.dumps(data, indent=1, ensure_ascii=False)


def _edges(plan: QueryPlan) -> list[tuple[int, int]]:
    assert plan.tensor is not None
    return [(source, node.id) for node in plan.tensor.graph for source in node.inputs]


def _caption(row: Row, costs: bool) -> list[str]:
    words = [row.operator, _field(row) if row.node.mode == "delta" and costs else row.node.mode]
    return [*words, f"{_flops(row)} MFLOP"] if costs and row.cost.full_multiply_adds else words


COLOURS = {"delta": "#cfe8cf", "full": "#f4d6cc", "project": "#f8efc2", "once": "#e4e4e4", "frozen": "#d5e3f3"}


def _dot(plan: QueryPlan, costs: bool, verbose: bool, actual: Mapping[int, float] | None, seconds: float | None) -> str:
    lines = ["digraph plan {", f"  label={json.dumps(heading(plan), ensure_ascii=False)};", "  node [shape=box, style=filled];"]
    for row in rows(plan, actual):
        label = json.dumps("\n".join(_caption(row, costs)), ensure_ascii=False)
        lines.append(f'  n{row.node.id} [label={label}, fillcolor="{COLOURS[row.node.mode]}"];')
    if plan.tensor is not None:
        lines += [f"  n{source} -> n{target};" for source, target in _edges(plan)]
    return "\n".join([*lines, "}"])


def _mermaid(plan: QueryPlan, costs: bool, verbose: bool, actual: Mapping[int, float] | None, seconds: float | None) -> str:
    lines = ["flowchart TD"]
    for row in rows(plan, actual):
        label = "<br/>".join(_caption(row, costs)).replace('"', "'")
        lines.append(f'  n{row.node.id}["{label}"]:::{row.node.mode}')
    if plan.tensor is not None:
        lines += [f"  n{source} --> n{target}" for source, target in _edges(plan)]
    else:
        lines.append(f'  naive["naive: {plan.occlusions.count} full inferences"]')
    return "\n".join([*lines, *(f"  classDef {mode} fill:{colour}" for mode, colour in COLOURS.items())])


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


FORMATS: dict[str, Callable[..., str]] = {"text": _text, "json": _json, "dot": _dot, "mermaid": _mermaid}
