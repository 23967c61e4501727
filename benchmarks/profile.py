"""Where an exact query's time goes, by kind of work and by layer: `python -m benchmarks.profile`.

Tiles drawn evenly from the map run with every operator timed. An operator is its own arithmetic and an epilogue (scale, sum,
activation, difference), which are told apart by timing the kernels that the executor calls; a kernel that does both counts as
arithmetic. What is neither (slicing views, zero extension, Python) is "between kernels". Convolutions show the rate of their
multiply-adds beside the machine's GEMM rate: Winograd makes fewer, and may exceed it. Chains (chain_depthwise), whose links
cannot be told apart so, run one by one. Writes results/profile.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from benchmarks import theory
from benchmarks.cases import Case, Subject, even
from benchmarks.machine import commit, describe, gemm_gflops, with_tuned_allocator
from benchmarks.record import write_json, write_text
from benchmarks.tables import NAMES, Plain, markdown
from benchmarks.targets import EARLIER
from benchmarks.tiled import positions
from krypton.executor import execute
from krypton.executor.program import Program
from krypton.ir.graph import Node
from krypton.planner.explain import rows as operators
from krypton.planner.optimizer import plan_query
from krypton.settings import Settings

LAYERS = 12
"""How many layers are shown, the most expensive first; the JSON has all."""


def kind(node: Node) -> str:
    """What a node's own arithmetic counts as."""
    whole = ", whole maps" if node.mode == "full" else ""
    if node.op == "conv":
        height, width = node.attrs["kernel"]
        if node.attrs["groups"] > 1:
            return ("conv depthwise" if node.attrs["groups"] == node.shape[0] else "conv grouped") + whole
        strided = "" if max(node.attrs["stride"]) == 1 else ", strided"
        return f"conv {min(height, width)}×{max(height, width)}{strided}{whole}"
    if "pool" in node.op:
        return f"pooling{whole}"
    if node.mode == "project" or not node.spatial or node.op == "mean":
        return "head"
    return "combine (batch norm, sum, activation)" if node.op == "combine" else node.op


class Kernels:
    """Milliseconds by node and by what its kernels are for: "own" arithmetic, or "combine" for epilogues."""

    def __init__(self) -> None:
        self.spent: dict[tuple[int, str], float] = {}

    def clear(self) -> None:
        self.spent.clear()

    def of(self, node_id: int, what: str) -> float:
        return self.spent.get((node_id, what), 0.0)

    def timing(self, node: Node, what: str, runner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = runner(*arguments, **options)
            key = node.id, what
            self.spent[key] = self.spent.get(key, 0.0) + (time.perf_counter() - started) * 1e3
            return result

        return run

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Programs that are made meanwhile have their kernels timed."""
        kernels, prepare = self, Program.prepare

        def preparing(program: Program, *arguments: Any, **options: Any) -> Any:
            for what, runners in (("own", program.kernels), ("combine", program.combines)):
                for node_id, runner in runners.items():
                    runners[node_id] = kernels.timing(program.nodes[node_id], what, runner)
            return prepare(program, *arguments, **options)

        with mock.patch.object(Program, "prepare", preparing):
            yield


def measure(case: Case, tiles: int, repeats: int) -> dict[str, Any]:
    """The profile of one model, as JSON data: the fastest of some runs over the same tiles, milliseconds per position."""
    subject = Subject(case)
    plan = plan_query(subject.captured, subject.grid, model=case.name, settings=Settings({"disabled_rules": "chain_depthwise"}))
    assert plan.tensor is not None
    drawn = even(plan.tensor.tiling.tiles(subject.grid), tiles)
    count, kernels, best = positions(drawn), Kernels(), None
    gemm = gemm_gflops()
    with kernels.watched():
        for _ in range(repeats + 1):
            kernels.clear()
            run = execute(plan, subject.image, subject.fill, weights=subject.captured.weights, tiles=drawn, timed=True)
            setup = run.seconds
            list(run)
            total = (run.seconds - setup) * 1e3
            if best is None or total < best[0]:
                best = total, setup * 1e3, dict(run.actual), dict(kernels.spent)
        gemm = max(gemm, gemm_gflops())
    assert best is not None
    total, setup, actual, spent = best
    kernels.spent = spent
    arithmetic = theory.of_tiles(plan.tensor.graph, drawn)
    layers = []
    for row in operators(plan, actual):
        if row.actual is not None:
            layers.append(_layer(row.node, row.operator, row.actual / count, arithmetic[row.node.id] / count, kernels, count))
    per_map = setup / subject.grid.count
    once = {"what": "base views (once per map)", "ms": per_map, "multiply_adds": 0.0}
    rest = {"what": "occlude, batching, copies out", "ms": (total - sum(actual.values())) / count, "multiply_adds": 0.0}
    groups = _grouped([part for layer in layers for part in layer["parts"]] + [once, rest])
    return {
        "model": case.name,
        "size": case.size,
        "commit": commit(),
        "measured_positions": count,
        "ms_per_position": total / count + per_map,
        "gemm_gflops": gemm,
        "groups": groups,
        "layers": layers,
    }


def _layer(node: Node, operator: str, ms: float, multiply_adds: float, kernels: Kernels, count: int) -> dict[str, Any]:
    """One operator: its parts add up to its time. Without kernels of its own, all of it is its own arithmetic."""
    own, combine = (kernels.of(node.id, what) / count for what in ("own", "combine"))
    parts: list[dict[str, Any]] = [
        {"what": kind(node), "ms": own or (ms - combine if node.op != "combine" else combine), "multiply_adds": multiply_adds}
    ]
    if combine and node.op != "combine":
        parts.append({"what": "combine (batch norm, sum, activation)", "ms": combine, "multiply_adds": 0.0})
    between = ms - sum(part["ms"] for part in parts)
    if between > 0:
        parts.append({"what": "between kernels", "ms": between, "multiply_adds": 0.0})
    return {
        "node": node.id,
        "operator": operator,
        "module": node.module,
        "kernel": node.kernel,
        "ms": ms,
        "multiply_adds": multiply_adds,
        "gflops": 2e-6 * multiply_adds / parts[0]["ms"] if multiply_adds and parts[0]["ms"] else None,
        "parts": parts,
    }


def _grouped(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sums by kind, the most expensive first."""
    groups: dict[str, dict[str, Any]] = {}
    for part in parts:
        group = groups.setdefault(part["what"], {"what": part["what"], "ms": 0.0, "multiply_adds": 0.0, "operators": 0})
        group["ms"] += part["ms"]
        group["multiply_adds"] += part["multiply_adds"]
        group["operators"] += 1
    total = sum(group["ms"] for group in groups.values())
    for group in groups.values():
        group["share"] = group["ms"] / total
        group["gflops"] = 2e-6 * group["multiply_adds"] / group["ms"] if group["multiply_adds"] and group["ms"] else None
    return sorted(groups.values(), key=lambda group: -group["ms"])


def tables(result: dict[str, Any]) -> list[Plain]:
    """By kind of work, and the most expensive layers."""
    name, gemm = NAMES.get(result["model"], result["model"]), result["gemm_gflops"]
    total = sum(group["ms"] for group in result["groups"])
    layers = sorted(result["layers"], key=lambda layer: -layer["ms"])[:LAYERS]
    gemms = sum(group["ms"] for group in result["groups"] if group["multiply_adds"]) / total
    return [
        Plain(
            f"{name}, {result['size']}²: {result['ms_per_position']:.2f} ms per position, {gemms:.0%} of it in convolutions "
            f"and GEMM; the machine's GEMM rate is {gemm:.0f} GFLOP/s",
            ("work", "operators", "ms", "share", "GFLOP/s", "of GEMM rate"),
            [
                [g["what"], str(g["operators"]), f"{g['ms']:.3f}", f"{g['share']:.1%}", *_rates(g, gemm)]
                for g in result["groups"]
            ],
        ),
        Plain(
            f"{name}: its {len(layers)} most expensive layers",
            ("module", "operator", "kernel", "ms", "share", "GFLOP/s", "of GEMM rate"),
            [
                [
                    y["module"] or "–",
                    y["operator"],
                    y["kernel"] or "–",
                    f"{y['ms']:.3f}",
                    f"{y['ms'] / total:.1%}",
                    *_rates(y, gemm),
                ]
                for y in layers
            ],
        ),
    ]


def _rates(row: dict[str, Any], gemm: float) -> list[str]:
    gflops = row["gflops"]
    return ["–", "–"] if gflops is None else [f"{gflops:.0f}", f"{gflops / gemm:.0%}"]


def save(path: Path, results: list[dict[str, Any]]) -> None:
    """The JSON, and the tables beside it."""
    data = {"machine": describe(), "command": "python -m benchmarks.profile", "results": results}
    write_json(path, data)
    write_text(path.with_suffix(".md"), "\n".join(markdown(table) for result in results for table in tables(result)))


def main() -> None:
    usual = [f"{name}@{size}" for name, size in EARLIER if size < 1024]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=usual, help="cases as model@size (default: the six models)")
    parser.add_argument("--tiles", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="runs over the same tiles, behind one that warms up")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/profile.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    torch.set_grad_enabled(False)
    console, results = Console(width=160), []
    for text in arguments.only:
        results.append(measure(Case.parse(text), arguments.tiles, arguments.repeats))
        save(arguments.out, results)
        for table in tables(results[-1]):
            console.print(markdown(table), highlight=False, markup=False)


if __name__ == "__main__":
    main()
