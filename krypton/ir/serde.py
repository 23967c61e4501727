"""Plans and graphs as versioned JSON, and back. Weights are named by content, never inline; masks are packed bits.

Whatever is read is checked: a plan from a file is as sound as one that was just planned, or it is a PlanError.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from krypton.errors import BindError, PlanError
from krypton.ir.geometry import Cut, Interval
from krypton.ir.graph import Epilogue, Function, Graph, Node, Term
from krypton.ir.occlusions import Grid, Masks, Occlusions, Tiling
from krypton.ir.plan import PLAN_VERSION, Approximation, Cost, QueryPlan, Stage, TensorPlan
from krypton.ir.verify import verify_graph, verify_plan

Json = dict[str, Any]


def plan_to_json(plan: QueryPlan, indent: int | None = 1) -> str:
    """A plan as text; the trace of its making is left out."""
    return json.dumps(plan_to_dict(plan), indent=indent, ensure_ascii=False)


def plan_to_dict(plan: QueryPlan) -> Json:
    return {
        "krypton_plan": PLAN_VERSION,
        "kind": plan.kind,
        "model": plan.model,
        "device": plan.device,
        "input_shape": list(plan.input_shape),
        "occlusions": _occlusions_to_json(plan.occlusions),
        "batch": plan.batch,
        "approximation": None if plan.approximation is None else asdict(plan.approximation),
        "stages": [_stage_to_json(stage) for stage in plan.stages],
        "notes": list(plan.notes),
        "tensor": None if plan.tensor is None else _tensor_to_json(plan.tensor),
    }


def plan_from_json(text: str) -> QueryPlan:
    """The plan of a text written by `plan_to_json`; PlanError says what is wrong with any other."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"the plan is not JSON: {error}") from None
    if not isinstance(data, dict) or "krypton_plan" not in data:
        raise PlanError("the text is not a plan: it has no krypton_plan version")
    if data["krypton_plan"] != PLAN_VERSION:
        raise PlanError(f"the plan has version {data['krypton_plan']}, this Krypton reads {PLAN_VERSION}: plan the query again")
    try:
        plan = QueryPlan(
            kind=data["kind"],
            occlusions=_occlusions_from_json(data["occlusions"]),
            device=str(data["device"]),
            model=str(data["model"]),
            input_shape=_three(data["input_shape"]),
            tensor=None if data["tensor"] is None else _tensor_from_json(data["tensor"]),
            batch=int(data["batch"]),
            approximation=None if data["approximation"] is None else _approximation_from_json(data["approximation"]),
            stages=tuple(_stage_from_json(stage) for stage in data["stages"]),
            notes=tuple(str(note) for note in data["notes"]),
        )
        verify_plan(plan)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, zlib.error, RuntimeError) as error:
        raise PlanError(f"the plan is damaged: {type(error).__name__}: {error}") from None
    except BindError as error:
        raise PlanError(f"the plan is damaged: {error}") from None
    return plan


def _stage_to_json(stage: Stage) -> Json:
    places = {"rows": list(stage.rows), "columns": list(stage.columns)}
    return {"kind": stage.kind, "count": stage.count, **places, "tiling": _tiling_to_json(stage.tiling)}


def _stage_from_json(data: Json) -> Stage:
    places = {axis: tuple(int(place) for place in data[axis]) for axis in ("rows", "columns")}
    return Stage(data["kind"], int(data["count"]), **places, tiling=_tiling_from_json(data["tiling"]))


def _approximation_from_json(data: Json) -> Approximation:
    names = ("tau", "keep", "drilldown", "speedup", "within", "ssim")
    given: Json = {name: float(data[name]) for name in names if data[name] is not None}
    given |= {name: bool(data[name]) for name in ("freeze", "crop")}
    given["correct"] = None if data["correct"] is None else int(data["correct"])
    return Approximation(**given, quality_share=float(data["quality_share"]), seed=int(data["seed"]))


def _tiling_to_json(tiling: Tiling) -> Json:
    return {
        "rows": [list(run) for run in tiling.rows],
        "columns": [list(run) for run in tiling.columns],
        "groups": [list(group) for group in tiling.groups],
    }


def _tiling_from_json(data: Json) -> Tiling:
    runs = {axis: tuple(Interval(int(a), int(b)) for a, b in data[axis]) for axis in ("rows", "columns")}
    return Tiling(groups=tuple(tuple(int(i) for i in group) for group in data["groups"]), **runs)


def graph_to_json(graph: Graph) -> Json:
    """A graph as JSON data, nodes in order; what a node does not have is left out."""
    return {"output": graph.output, "nodes": [_node_to_json(node) for node in graph]}


def graph_from_json(data: Json) -> Graph:
    """The inverse; PlanError when the data is no sound graph."""
    try:
        graph = Graph(tuple(_node_from_json(node) for node in data["nodes"]), int(data["output"]))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise PlanError(f"the graph is damaged: {type(error).__name__}: {error}") from None
    verify_graph(graph)
    return graph


def _node_to_json(node: Node) -> Json:
    data: Json = {"id": node.id, "op": node.op, "inputs": list(node.inputs), "shape": list(node.shape), "mode": node.mode}
    data |= {name: dict(value) for name in ("attrs", "weights") if (value := getattr(node, name))}
    data |= {name: value for name in ("module", "kernel") if (value := getattr(node, name))}
    if node.cuts:
        data["cuts"] = [[asdict(cut) for cut in pair] for pair in node.cuts]
    if node.rules:
        data["rules"] = list(node.rules)
    if node.epilogue:
        data["terms"] = [{k: v for k, v in asdict(term).items() if v is not None} for term in node.epilogue.terms]
        if node.epilogue.function:
            data["function"] = [node.epilogue.function.name, *node.epilogue.function.parameters]
    return data


def _node_from_json(data: Json) -> Node:
    epilogue = None
    if "terms" in data:
        terms = tuple(Term(int(t["input"]), t.get("scale"), t.get("shift")) for t in data["terms"])
        function = Function(data["function"][0], tuple(map(float, data["function"][1:]))) if "function" in data else None
        epilogue = Epilogue(terms, function)
    return Node(
        id=int(data["id"]),
        op=str(data["op"]),
        inputs=tuple(int(source) for source in data["inputs"]),
        shape=tuple(int(size) for size in data["shape"]),
        attrs=dict(data.get("attrs", {})),
        weights={str(name): str(reference) for name, reference in data.get("weights", {}).items()},
        module=str(data.get("module", "")),
        epilogue=epilogue,
        mode=data["mode"],
        kernel=str(data.get("kernel", "")),
        cuts=tuple((_cut_from_json(rows), _cut_from_json(columns)) for rows, columns in data.get("cuts", ())),
        rules=tuple(str(rule) for rule in data.get("rules", ())),
    )


def _cut_from_json(data: Json) -> Cut:
    return Cut(float(data["before"]), float(data["after"]), bool(data["slide"]))


def _tensor_to_json(tensor: TensorPlan) -> Json:
    return {
        "graph": graph_to_json(tensor.graph),
        "views": None if tensor.views is None else [list(view) for view in tensor.views],
        "view_scope": tensor.view_scope,
        "tiling": _tiling_to_json(tensor.tiling),
        "head_batch": tensor.head_batch,
        "costs": {str(node): asdict(cost) for node, cost in tensor.costs.items()},
        "tolerance": tensor.tolerance,
        "sensitivity": {str(node): value for node, value in tensor.sensitivity.items()},
        "keep": tensor.keep,
        "chains": [list(chain) for chain in tensor.chains],
        "alternatives": {str(node): [list(pair) for pair in pairs] for node, pairs in tensor.alternatives.items()},
    }


def _tensor_from_json(data: Json) -> TensorPlan:
    if data["view_scope"] not in ("batch", "query"):
        raise PlanError(f"the plan has the unknown view scope {data['view_scope']!r}")
    return TensorPlan(
        graph=graph_from_json(data["graph"]),
        views=None if data["views"] is None else tuple((int(node), str(kind)) for node, kind in data["views"]),
        view_scope=data["view_scope"],
        tiling=_tiling_from_json(data["tiling"]),
        head_batch=int(data["head_batch"]),
        costs={
            int(node): Cost(**{**cost, "field": tuple(cost["field"]) if cost["field"] else None})
            for node, cost in data["costs"].items()
        },
        tolerance=float(data["tolerance"]),
        sensitivity={int(node): float(value) for node, value in data["sensitivity"].items()},
        keep=float(data["keep"]),
        chains=tuple(tuple(int(node) for node in chain) for chain in data["chains"]),
        alternatives={
            int(node): tuple((str(name), float(ms)) for name, ms in pairs) for node, pairs in data["alternatives"].items()
        },
    )


def _occlusions_to_json(occlusions: Occlusions) -> Json:
    if isinstance(occlusions, Grid):
        region = None if occlusions.region is None else list(occlusions.region)
        sizes = {"image": list(occlusions.image), "patch": list(occlusions.patch), "stride": list(occlusions.stride)}
        return {"grid": {**sizes, "region": region}}
    bits = np.packbits(occlusions.masks.numpy().reshape(-1))
    packed = base64.b64encode(zlib.compress(bits.tobytes())).decode()
    return {"masks": {"shape": list(occlusions.masks.shape), "bits": packed}}


MOST_MASK_CELLS = 2**33


def _occlusions_from_json(data: Json) -> Occlusions:
    if "grid" in data:
        grid = data["grid"]
        region = None if grid["region"] is None else tuple(int(n) for n in grid["region"])
        image, patch, stride = (_two(grid[name]) for name in ("image", "patch", "stride"))
        return Grid(image, patch, stride, region)  # type: ignore[arg-type]
    shape = _three(data["masks"]["shape"])
    count = shape[0] * shape[1] * shape[2]
    if not 0 < count < MOST_MASK_CELLS:
        raise PlanError(f"the plan has masks of {shape}, which is too much or nothing")
    expander = zlib.decompressobj()
    raw = expander.decompress(base64.b64decode(data["masks"]["bits"]), -(-count // 8))
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=count)
    return Masks(torch.from_numpy(bits.astype(bool)).reshape(shape))


def _two(values: list[int]) -> tuple[int, int]:
    a, b = values
    return int(a), int(b)


def _three(values: list[int]) -> tuple[int, int, int]:
    a, b, c = values
    return int(a), int(b), int(c)
