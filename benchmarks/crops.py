"""Two ways to cut fields by τ, compared: `python -m benchmarks.crops` writes results/crops.json.

Krypton cuts the output of an operator around the projection of the patch (planner/rules/projective_threshold.py). The papers
(equations 30 to 36) crop the operator's input, around the middle of the field that the border may have clipped, to what makes
an output as large: S·P − F + 1 places for an output of P with kernel F and stride S. What lies outside counts as unchanged.
Both are carried out here on whole maps, position by position, and judged by SSIM and by the multiply-adds that are left.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.approximate import DEMO, PATCH, Subject
from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.record import write_json
from benchmarks.settings import NINE
from benchmarks.tables import Plain, markdown, rich_table
from krypton.executor.occluder import Occluder
from krypton.ir.geometry import Interval, hull, make
from krypton.ir.graph import Graph, Node
from krypton.ir.plan import Approximation
from krypton.operators.base import operator_of
from krypton.planner.optimizer import plan_query
from krypton.planner.projection import AXES, projections, windowed
from krypton.planner.whole import WholeBatch, run_node
from krypton.results import Heatmap, compare

TAUS = (0.8, 0.6, 0.4)
VARIANTS = ("output", "input")
TOGETHER = 32  # positions

Axes = tuple[Interval, Interval]


class Cropped:
    """A model whose fields are cut in one of the ways, on one image; `graph` is that of a plan with tau."""

    def __init__(self, graph: Graph, weight: Any, occluder: Occluder, tau: float, variant: str) -> None:
        self.graph, self.weight, self.occluder = graph, weight, occluder
        self.tau, self.variant = tau, variant
        self._projections = projections(graph)
        self.base = self._values(occluder.image[None], {})

    def logits(self, indices: list[int]) -> Tensor:
        """Of the occlusions of these numbers (n, K)."""
        return self._values(self.occluder.images(indices), self.fields(indices))[self.graph.output]

    def fields(self, indices: list[int]) -> dict[int, list[Axes]]:
        """Where each occlusion may change each node that computes changes."""
        boxes = self.occluder.occlusions.rectangles().reshape(-1, 4)[indices].tolist()
        patches = [(make(top, top + height), make(left, left + width)) for top, left, height, width in boxes]
        found = {self.graph.image.id: patches}
        for node in self.graph.nodes[1:]:
            if node.mode == "delta":
                found[node.id] = self._fields(node, [found[s] for s in node.inputs if s in found], patches)
        return found

    def multiply_adds(self, indices: list[int]) -> int:
        """What the fields of these occlusions cost."""
        nodes = self.graph.index()
        return sum(
            operator_of(nodes[node]).multiply_adds(nodes[node], rows.size, columns.size)
            for node, boxes in self.fields(indices).items()
            for rows, columns in boxes
            if node != self.graph.image.id
        )

    def _values(self, images: Tensor, fields: dict[int, list[Axes]]) -> dict[int, Tensor]:
        """Every node's value, (1, …) of the unmodified image where there are no fields."""
        whole, values = WholeBatch(len(images), images.device, self.weight), {self.graph.image.id: images}
        for node in self.graph.nodes[1:]:
            inputs = [values[source] for source in node.inputs]
            cut = bool(fields) and windowed(node)
            if cut and self.variant == "input":
                crops = [self._crop(node, field) for field in fields[node.inputs[0]]]
                inputs[0] = self._inside(inputs[0], self.base[node.inputs[0]], crops)
            value = inputs[0] if node.op == "project" else run_node(node, inputs, whole)[1]
            if cut and self.variant == "output":
                value = self._inside(value, self.base[node.id], fields[node.id])
            values[node.id] = value
        return values

    def _fields(self, node: Node, sources: list[list[Axes]], patches: list[Axes]) -> list[Axes]:
        found: list[Axes] = []
        operator = operator_of(node)
        for number, patch in enumerate(patches):
            changed = [source[number] for source in sources]
            if windowed(node) and self.variant == "input":
                changed = [self._crop(node, changed[0]), *changed[1:]]
            own = [operator.field(node, axis, [field[axis] for field in changed]) for axis in AXES]
            # what is added afterwards may change elsewhere, too
            rows, columns = (hull(own[axis], *(f[axis] for f in changed[1:])) for axis in AXES)
            if windowed(node) and self.variant == "output":
                for cuts in node.cuts:
                    places = [self._projections[node.id][axis].of(patch[axis]) for axis in AXES]
                    kept = [cut.apply((rows, columns)[a], places[a], node.shape[1 + a]) for a, cut in enumerate(cuts)]
                    rows, columns = kept
            found.append((rows, columns))
        return found

    def _crop(self, node: Node, field: Axes) -> Axes:
        """The part of the input's field that is read."""
        parts = []
        for axis in AXES:
            limit = max(1, round(self.tau * node.shape[1 + axis]))
            grown = operator_of(node).field(node, axis, [field[axis]])
            size = field[axis].size
            if grown.size > limit and "kernel" in node.attrs:
                kernel, stride = node.attrs["kernel"][axis], node.attrs["stride"][axis]
                size = min(size, max(1, stride * limit - (kernel - 1)))
            start = field[axis].start + (field[axis].size - size) // 2
            parts.append(make(start, start + size))
        return parts[0], parts[1]

    @staticmethod
    def _inside(values: Tensor, base: Tensor, boxes: list[Axes]) -> Tensor:
        """The values inside the boxes (one for each of the batch), the base values elsewhere."""
        result = base.expand_as(values).clone()
        for number, (rows, columns) in enumerate(boxes):
            place = (number, slice(None), slice(*rows), slice(*columns))
            result[place] = values[place]
        return result


@torch.no_grad()
def measure(subject: Subject, image: Any, stride: int) -> list[dict[str, Any]]:
    """A row for each τ and variant, beside the exact map."""
    with subject.connect() as con:
        con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
        query = con.sql(
            f"EXPLAIN OCCLUSION OF $image USING MODEL subject PATCH {PATCH[0]} STRIDE {stride}", params={"image": image}
        )
        exact = query.run()
        assert isinstance(exact, Heatmap)
        captured, prepared = subject.graphs.captured(query.bound.model).model, query._prepared(0)
    assert captured is not None
    grid = prepared.occlusions
    occluder, rows = Occluder(grid, prepared.image.input, prepared.fill.values), []
    for tau in TAUS:
        plan = plan_query(captured, grid, mode="approximate", approximation=Approximation(tau))
        assert plan.tensor is not None
        every = list(range(grid.count))
        uncut = Cropped(plan.tensor.uncut().graph, captured.weights.get, occluder, 1.0, "output").multiply_adds(every)
        for variant in VARIANTS:
            cropped = Cropped(plan.tensor.graph, captured.weights.get, occluder, tau, variant)
            parts = [every[first : first + TOGETHER] for first in range(0, grid.count, TOGETHER)]
            logits = torch.cat([cropped.logits(part) for part in parts]).view_as(exact.logits)
            found = compare(replace(exact, logits=logits), exact)
            rows.append({"tau": tau, "variant": variant, "ssim": found.ssim, "rmse": found.relative_rmse})
            rows[-1] |= {"multiply_adds": cropped.multiply_adds(every), "uncut": uncut}
    return rows


def table(rows: list[dict[str, Any]]) -> Plain:
    """Medians over pictures, of each model."""
    headings = (
        "model and pictures",
        "τ",
        *(f"{v} cut: {what}" for v in VARIANTS for what in ("SSIM", "RMSE / range", "arithmetic")),
    )
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        for tau in TAUS:
            line = [setting, f"{tau:g}"]
            for variant in VARIANTS:
                of = [r for r in rows if (r["setting"], r["tau"], r["variant"]) == (setting, tau, variant)]
                share = statistics.median(row["multiply_adds"] / row["uncut"] for row in of)
                ssim, rmse = (statistics.median(row[name] for row in of) for name in ("ssim", "rmse"))
                line += [f"{ssim:.3f}", f"{rmse:.1%}", f"{share:.0%}"]
            lines.append(tuple(line))
    return Plain("cut outputs and cropped inputs", headings, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [DEMO, *map(str, NINE)]
    parser.add_argument("--settings", nargs="*", default=[DEMO, "resnet18/natural"], choices=names, metavar="MODEL/SET")
    parser.add_argument("--pictures", type=int, default=6, help="of each setting")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/crops.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    rows: list[dict[str, Any]] = []
    for setting in arguments.settings:
        subject = Subject(setting)
        for number, image in enumerate(subject.images(arguments.pictures, 0)):
            rows += [{"setting": setting, "picture": number} | row for row in measure(subject, image, arguments.stride)]
            print(f"{setting}, picture {number}", flush=True)
    about = {"machine": describe(), "commit": commit(), "command": "python -m benchmarks.crops", "stride": arguments.stride}
    write_json(arguments.out, about | {"results": rows})
    Console(width=160).print(rich_table(table(rows)))
    print(markdown(table(rows)))


if __name__ == "__main__":
    main()
