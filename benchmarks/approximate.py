"""How good and how fast approximate maps are: `python -m benchmarks.approximate` writes results/approximate.json.

On the shipped demo model, the papers' nine settings (see `settings`) and models whose layers look at whole maps (see `gated`),
patch 16, stride 4. For each picture, naive inference on some batches, the exact map and every WITH clause take turns in one
process; quality is that of `krypton.results.compare` against the exact map. Trivial baselines stand in the same table: every
second (or fourth) row and column exactly, the rest interpolated; the base score everywhere. The JSON is written after every
picture; maps of the same setting, picture and clause are replaced.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import runpy
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

import krypton
from benchmarks import approximate_tables as tables
from benchmarks import gated
from benchmarks.clock import clocked
from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.record import write_json
from benchmarks.settings import NINE, SETS, Setting, ready
from benchmarks.tables import markdown, rich_table
from krypton.cli.demo import connect_with_model, find_files
from krypton.executor.interpolation import bilinear
from krypton.graphs import GraphCache
from krypton.ir.occlusions import Grid
from krypton.planner.order import evenly
from krypton.results import Heatmap, Quality, compare
from krypton.session import Connection

DEMO = "demo/retina"
QUERY = "EXPLAIN OCCLUSION OF $image USING MODEL subject PATCH 16 STRIDE 4"
PATCH, STRIDE = (16, 16), (4, 4)
FIRST_SEED = 1000  # of scans that the demo model was not trained on
DRILLDOWNS = tuple("drilldown => {:g}, speedup => {:g}".format(*found.drilldown) for found in SETS.values())
LATTICES = {2: tables.EVERY_2ND, 4: "drilldown => 0, speedup => 13.5"}
"""The clauses that compute every so manyth row and column exactly, and interpolate the rest."""

CLAUSES = (
    "keep => 0.999",
    "keep => 0.99",
    "keep => 0.97",
    "keep => 0.93",
    "tau => 0.8",
    "tau => 0.6",
    "crop => TRUE, tau => 0.8",
    "crop => TRUE, tau => 0.6",
    *DRILLDOWNS,
    *(f"keep => 0.99, {drilldown}" for drilldown in DRILLDOWNS),
    *LATTICES.values(),
    "tolerance => 0.05, keep => 0.99",
)
FREEZING = (
    "freeze => TRUE",
    "freeze => TRUE, correct => 4",
    "freeze => TRUE, correct => 2",
    "freeze => TRUE, keep => 0.99, correct => 4",
    "freeze => TRUE, keep => 0.99, correct => 2",
    "drilldown => 0.25, speedup => 3",
    "drilldown => 0.1, speedup => 5",
    LATTICES[2],
    LATTICES[4],
)
"""Of models whose layers look at whole maps."""

CORRECTED = ("keep => 0.999", "keep => 0.99", "keep => 0.97")
"""Cheap maps that are corrected afterwards, by their errors at the crossings of a lattice, interpolated."""

NAIVE_BATCH, NAIVE_ROUNDS = 16, 3


class Subject:
    """A model to be explained. Every query has a session of its own, so that none answers from what another found; graphs are
    captured once."""

    def __init__(self, name: str) -> None:
        self.name, self.graphs = name, GraphCache()
        self.about: dict[str, Any] = {}
        self.options: dict[str, Any]
        if name == DEMO:
            with connect_with_model(find_files()) as con:
                model = con.library.named("retina")
            self.module, self.options = model.module, {"labels": model.labels}
            preprocessing = model.preprocessing
            self.options |= {"input_shape": preprocessing.shape, "mean": preprocessing.mean, "std": preprocessing.std}
            return
        if name in gated.SETTINGS:
            trained = gated.trained(name.partition("/")[0])
            self.about = {"accuracy": trained.accuracy, "start": "random"}
            self.module, self.options = trained.module, {"labels": trained.names, **gated.PREPROCESSING}
            return
        found = ready(Setting.parse(name))
        with krypton.connect() as con:
            con.sql(f"CREATE MODEL subject FROM '{found.path}'")
            model = con.library.named("subject")
        self.about = {"accuracy": found.accuracy, "start": found.start}
        self.module, preprocessing = model.module, model.preprocessing
        self.options = {"input_shape": preprocessing.shape, "mean": preprocessing.mean, "std": preprocessing.std}
        self.options["labels"] = found.names

    def images(self, count: int, first: int) -> Iterator[np.ndarray[Any, Any]]:
        """Pictures (H, W, 3) that the model was not trained on."""
        if self.name in gated.SETTINGS:
            return gated.unseen(count, first)
        if self.name != DEMO:
            return Setting.parse(self.name).test_images(count, first)
        return islice(scans(), first, first + count)

    def connect(self) -> Connection:
        con = krypton.connect()
        con.graphs = self.graphs
        con.register_model("subject", self.module, **self.options)
        return con

    def run(self, image: np.ndarray[Any, Any], clause: str) -> Heatmap:
        with self.connect() as con:
            answer = con.sql(f"{QUERY} {clause}", params={"image": image}).run()
        assert isinstance(answer, Heatmap)
        return answer


def scans() -> Iterator[np.ndarray[Any, Any]]:
    """Scans (H, W, 3) with a lesion, the kinds in turn."""
    phantoms = runpy.run_path(str(find_files() / "phantoms.py"))
    kinds, number = phantoms["KINDS"][1:], 0
    while True:
        image = phantoms["generate"](kinds[number % len(kinds)], FIRST_SEED + number // len(kinds)).image
        yield np.repeat(image[..., None], 3, 2)
        number += 1


class Naive:
    """Eager inference, channels innermost, on batches that are ready beforehand: seconds per position."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        self.module = copy.deepcopy(module).to(memory_format=torch.channels_last)
        self.images = torch.rand(NAIVE_BATCH, *shape).contiguous(memory_format=torch.channels_last)
        self.module(self.images)
        self.seconds: list[float] = []

    def round(self) -> None:
        self.seconds.append(clocked(lambda: self.module(self.images)) / NAIVE_BATCH)

    @property
    def best(self) -> float:
        return min(self.seconds)


def quality(approximate: Heatmap, exact: Heatmap) -> dict[str, Any]:
    """A map's quality, and what it says of itself."""
    found: Quality = compare(approximate, exact)
    said = approximate.quality.ssim if approximate.quality is not None else None
    return {
        "ssim": found.ssim,
        "rmse": found.relative_rmse,
        "spearman": found.spearman,
        "top10": found.top10_overlap,
        "said": said,
    }


def made(exact: Heatmap, found: dict[str, Heatmap]) -> Iterator[tuple[str, Heatmap, float | None]]:
    """Maps that no clause gives, with the seconds they would take: what cheap maps become when they are corrected by their
    errors on a lattice; and a map of the base score."""
    rows, columns, classes = exact.logits.shape
    yield tables.FLAT, replace(exact, logits=exact.base_logits.expand(rows, columns, classes)), None
    for clause in CORRECTED:
        for step, lattice_clause in LATTICES.items():
            if clause not in found or lattice_clause not in found:
                continue
            lattice = evenly(rows, step), evenly(columns, step)
            error = (exact.logits - found[clause].logits).reshape(-1, classes)
            corrected = found[clause].logits + _between(exact, error, lattice).view(rows, columns, classes)
            seconds = found[clause].info["seconds"] + found[lattice_clause].info["seconds"]
            yield tables.corrected(clause, step), replace(exact, logits=corrected), seconds


def _between(exact: Heatmap, values: Tensor, lattice: tuple[tuple[int, ...], tuple[int, ...]]) -> Tensor:
    return bilinear(values, Grid(exact.image_size, PATCH, STRIDE), lattice)


@torch.no_grad()
def measure(subject: Subject, image: np.ndarray[Any, Any], clauses: tuple[str, ...], timed: bool) -> dict[str, Any]:
    """All maps of one picture. `seconds` are those of whole maps, naive ones reckoned from the positions measured; exact ones
    are made before and after the others. Of naive and exact the fastest counts, of all others there is one. Untimed rows have
    none: others may compute meanwhile."""
    naive = Naive(subject.module, subject.options["input_shape"]) if timed else None
    exact, found = subject.run(image, ""), dict[str, Heatmap]()
    for number, clause in enumerate(clauses):
        found[clause] = subject.run(image, f"MODE APPROXIMATE WITH ({clause})")
        if naive is not None and number % max(1, len(clauses) // NAIVE_ROUNDS) == 0:
            naive.round()
    taken: dict[str, float] | None = None
    if naive is not None:
        seconds = min(exact.info["seconds"], subject.run(image, "").info["seconds"])
        taken = {"naive": naive.best * exact.known.numel(), "exact": seconds}
    own = [(clause, heatmap, float(heatmap.info["seconds"])) for clause, heatmap in found.items()]
    none: dict[str, Any] = {"seconds": None, "naive": None, "exact": None}
    maps = {
        # times are those that it took turns with
        name: quality(heatmap, exact) | ({"seconds": spent} | taken if taken else none) | {"commit": commit()}
        for name, heatmap, spent in (*own, *made(exact, found))
    }
    return {
        "positions": exact.known.numel(),
        "range": float(np.ptp(exact.drop())),
        "label": exact.label,
        "base": exact.base_score,
        "load": os.getloadavg()[0],  # about the threads in use when nobody else computes
        "seconds": taken,
        "maps": maps,
    }


def saved(path: Path, machine: dict[str, object]) -> list[dict[str, Any]]:
    """Rows of earlier runs on the same machine."""
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    rows: list[dict[str, Any]] = data.get("results", [])
    return rows if data["machine"] == machine else []


def merged(rows: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with one more; maps and times that it does not have are kept from the row of the same setting and picture."""
    key = row["setting"], row["picture"]
    before = [old for old in rows if (old["setting"], old["picture"]) == key]
    if before:
        seconds = row["seconds"] or before[0]["seconds"]
        maps = before[0]["maps"]
        maps = maps | {name: _timed(new, maps.get(name)) for name, new in row["maps"].items()}
        row = row | {"seconds": seconds, "maps": maps}
    order = [DEMO, *map(str, NINE), *gated.SETTINGS]
    others = [old for old in rows if (old["setting"], old["picture"]) != key]
    return sorted([*others, row], key=lambda one: (order.index(one["setting"]), one["picture"]))


def _timed(new: dict[str, Any], old: dict[str, Any] | None) -> dict[str, Any]:
    """A map with the times of an earlier run of it, and that run's commit, where it has none of its own."""
    if old is None or new["seconds"] is not None or old["seconds"] is None:
        return new
    times = {name: old[name] for name in ("seconds", "naive", "exact")}
    return new | times | {"timed": old.get("timed", old["commit"])}


def save(path: Path, machine: dict[str, object], rows: list[dict[str, Any]]) -> None:
    write_json(path, {"machine": machine, "command": "python -m benchmarks.approximate", "results": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [DEMO, *map(str, NINE)]
    known = [*names, *gated.SETTINGS]
    parser.add_argument("--settings", nargs="*", default=names, choices=known, metavar="MODEL/SET", help=", ".join(known))
    parser.add_argument("--scans", type=int, default=6, help="pictures of each setting")
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--clauses", nargs="*", help="as in WITH (...)")
    parser.add_argument("--no-times", action="store_true", help="quality alone, for when the computer is busy")
    parser.add_argument("--missing", action="store_true", help="only pictures that are not in the results yet")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no picture after so many")
    parser.add_argument("--merge", nargs="*", type=Path, help="measure nothing, take these results of the same machine over")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/approximate.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    console, machine, started = Console(width=160), describe(), time.perf_counter()
    for path in arguments.merge or ():
        rows = saved(path, machine)
        if not rows:
            parser.error(f"{path} has no results of this machine")
        save(arguments.out, machine, functools.reduce(merged, rows, saved(arguments.out, machine)))
    for setting in arguments.settings if arguments.merge is None else ():
        rows = saved(arguments.out, machine)
        done = {row["picture"] for row in rows if row["setting"] == setting} if arguments.missing else set()
        if done >= set(range(arguments.first, arguments.first + arguments.scans)):
            continue
        subject, warm = Subject(setting), False
        clauses = tuple(arguments.clauses or (FREEZING if setting in gated.SETTINGS else CLAUSES))
        for number, image in enumerate(subject.images(arguments.scans, arguments.first), arguments.first):
            if number in done or time.perf_counter() - started > arguments.seconds:
                continue
            if not warm:
                subject.run(image, "IN REGION (0, 0, 48, 48)")  # graphs are captured, kernels made ready
                warm = True
            row = {"setting": setting, "picture": number} | subject.about | {"when": time.strftime("%Y-%m-%d %H:%M")}
            row |= {"commit": commit()} | measure(subject, image, clauses, not arguments.no_times)
            save(arguments.out, machine, merged(saved(arguments.out, machine), row))
            console.print(f"{setting}, picture {number}: range {row['range']:.3f}", highlight=False)
    for table in tables.of(saved(arguments.out, machine)):
        console.print(rich_table(table))
        print(markdown(table))


if __name__ == "__main__":
    main()
