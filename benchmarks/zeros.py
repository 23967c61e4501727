"""How much of what `direct` convolutions read is zero: `python -m benchmarks.zeros`.

For every convolution of a plan that the kernel `direct` runs on deltas: the share of inputs that are not zero in an occlusion,
and the share that are not zero in all of twelve occlusions at one place, which are the ones that the kernel multiplies. Both
are weighted by the multiply-adds. Counts, not times: nothing needs to be quiet. Writes results/zeros.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.cases import Case, Subject, even
from benchmarks.machine import commit, describe
from benchmarks.record import write_json
from benchmarks.tables import NAMES, Plain, markdown
from benchmarks.targets import EARLIER
from krypton.executor import execute
from krypton.executor.program import Program
from krypton.ir.delta import Deferred, Delta
from krypton.ir.graph import Node
from krypton.operators.functions import evaluate
from krypton.planner.optimizer import plan_query
from krypton.settings import Settings

TOGETHER = 12
"""Rows of one product; see krypton/kernels/cpp/gemm.h."""


class Counts:
    """Weighted sums of shares: for one occlusion, and for those that are multiplied together."""

    def __init__(self) -> None:
        self.one = self.together = self.weight = 0.0

    def watching(self, node: Node, runner: Callable[..., Any]) -> Callable[..., Any]:
        def run(target: Delta, field: Any, source: Delta | Deferred, *others: Any, **options: Any) -> Any:
            kernel = node.attrs["kernel"][0] * node.attrs["kernel"][1]
            self.add(read(source), node.shape[0] * kernel)
            return runner(target, field, source, *others, **options)

        return run

    def add(self, values: Tensor, work: float) -> None:
        """`values` (B, C, h, w); places that change in no occlusion are not read."""
        changed = values != 0
        for some in torch.split(changed, TOGETHER):
            places = some.any(1).all(0)
            if len(some) < TOGETHER or not bool(places.any()):
                continue
            read = some[:, :, places].float()
            weight = read.numel() * work
            self.one += float(read.mean()) * weight
            self.together += float(read.amax(0).mean()) * weight
            self.weight += weight

    @property
    def shares(self) -> dict[str, float | None]:
        """None where no convolution was seen."""
        return {
            name: found / self.weight if self.weight else None
            for name, found in (("one", self.one), ("together", self.together))
        }


def read(source: Delta | Deferred) -> Tensor:
    """What the convolution multiplies, (B, C, h, w)."""
    if isinstance(source, Delta):
        return source.data
    delta, base, scale = source.source, source.base, 1.0 if source.scale is None else source.scale[:, None, None]
    rows, columns = delta.rows, delta.columns
    there = base[:, :, rows.start : rows.stop, columns.start : columns.stop]
    return evaluate(source.function, there + scale * delta.data) - evaluate(source.function, there)


def measure(case: Case, tiles: int) -> dict[str, Any]:
    """The shares of one model, as JSON data."""
    subject, counts = Subject(case), Counts()
    plan = plan_query(subject.captured, subject.grid, model=case.name, settings=Settings({"disabled_rules": "chain_depthwise"}))
    assert plan.tensor is not None
    drawn = even(plan.tensor.tiling.tiles(subject.grid), tiles)
    prepare = Program.prepare

    def preparing(program: Program, *arguments: Any, **options: Any) -> Any:
        for number, runner in program.kernels.items():
            node = program.nodes[number]
            if node.op == "conv" and node.mode == "delta" and node.own_kernel == "direct":
                program.kernels[number] = counts.watching(node, runner)
        return prepare(program, *arguments, **options)

    with mock.patch.object(Program, "prepare", preparing):
        list(execute(plan, subject.image, subject.fill, weights=subject.captured.weights, tiles=drawn))
    return {"model": case.name, "size": case.size, "commit": commit(), **counts.shares}


def table(results: list[dict[str, Any]]) -> Plain:
    return Plain(
        "What direct convolutions read that is not zero, weighted by multiply-adds",
        ("model", "input", "in one occlusion", f"in any of {TOGETHER}"),
        [[NAMES.get(r["model"], r["model"]), f"{r['size']}²", _percent(r["one"]), _percent(r["together"])] for r in results],
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def main() -> None:
    usual = [f"{name}@{size}" for name, size in EARLIER if size < 1024]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", default=usual, help="cases as model@size (default: the six models)")
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/zeros.json"))
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    results = [measure(Case.parse(text), arguments.tiles) for text in arguments.only]
    data = {"machine": describe(), "command": shlex.join(["python", *sys.orig_argv[1:]]), "results": results}
    write_json(arguments.out, data)
    Console(width=160).print(markdown(table(results)), highlight=False, markup=False)


if __name__ == "__main__":
    main()
