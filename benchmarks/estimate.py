"""Estimated against actual run time and memory: `python -m benchmarks.estimate` writes results/estimate.json.

One session, as a user's: CALIBRATE, then model after model. Each model is estimated twice. As it comes (*unseen model*: the
finished queries are those of the models before it; for the first, there are none), and at the end, when `--learnt` queries of
every model have run (*known model*). The queries that are judged are others: patch sizes, strides and regions are drawn from
values that the learnt queries do not have. All estimates are made before the first judged query runs, so that none learns
from another. Other work on the machine comes and goes: half of a model's queries are learnt from when it comes, half when all
have come, and of a judged query the median of `--rounds` runs counts, all of them in turn.

Seconds are those of the run with model and plan ready, base views included; an error is |estimate ÷ actual − 1|. Memory is the
growth of the process's peak over what it had before the query (on Linux), by which the estimate is divided.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

import krypton
from benchmarks.cases import Case, build, photo
from benchmarks.examples import EXAMPLES, example
from benchmarks.machine import commit, describe
from benchmarks.record import write_json
from benchmarks.tables import Plain, rich_table
from krypton.estimates import Estimate
from krypton.executor import execute
from krypton.ir.occlusions import Grid
from krypton.query import Query

MODELS = ("retina@160", "resnet18@160", "squeezenet1_1@192", "mobilenet_v2@160", "densenet121@128")
MODES = {
    "exact": "",
    "tolerance": "WITH (tolerance => 0.05)",
    "naive": "MODE NAIVE",
    "drilldown": "MODE APPROXIMATE",
    "keep": "MODE APPROXIMATE WITH (keep => 0.999)",
}
"""Clause by name; a new mode is a new row."""

LEARNT_MODES = ("exact", "tolerance", "naive")
"""Those that sessions learn from; what approximate queries take they must tell from that."""

POSITIONS = {"exact": (150, 1200), "tolerance": (150, 1200), "naive": (30, 100), "drilldown": (400, 1600), "keep": (150, 1200)}
"""Fewest and most, so that a query takes a few seconds."""

WANTED = {"median": 0.10, "90th percentile": 0.25}


@dataclass(frozen=True)
class Values:
    """What queries are drawn from; regions by their share of the image's side."""

    patches: tuple[int, ...]
    strides: tuple[int, ...]
    regions: tuple[float, ...]


LEARNT = Values((8, 16, 32), (4, 8, 16), (0.5, 0.75, 1.0))
JUDGED = Values((6, 12, 20, 24), (5, 6, 10, 12), (0.4, 0.6, 0.9))


@dataclass(frozen=True)
class Asked:
    """One query; `region` is (top, left, height, width)."""

    model: str
    mode: str
    patch: int
    stride: int
    region: tuple[int, int, int, int]
    positions: int

    def clauses(self) -> str:
        return f"PATCH {self.patch} STRIDE {self.stride} IN REGION {self.region} {MODES[self.mode]}"


def draw(model: str, size: int, mode: str, values: Values, generator: random.Random) -> Asked:
    """A query of a mode at random, of about the right size."""
    fewest, most = POSITIONS[mode]
    while True:
        patch, stride = generator.choice(values.patches), generator.choice(values.strides)
        side = round(size * generator.choice(values.regions))
        top, left = generator.randint(0, size - side), generator.randint(0, size - side)
        starts = [[s for s in range(0, size - patch + 1, stride) if at <= s <= at + side - patch] for at in (top, left)]
        if fewest <= len(starts[0]) * len(starts[1]) <= most:
            grid = Grid((size, size), (patch, patch), (stride, stride), (top, left, side, side))
            return Asked(model, mode, patch, stride, (top, left, side, side), grid.count)


class Session:
    """A session with the models registered as they come."""

    def __init__(self) -> None:
        self.con = krypton.connect(config={"reuse_results": False})
        self._images: dict[str, Any] = {}

    def register(self, case: Case) -> None:
        if case.name == "retina":
            module = _retina()
            self.con.register_model("retina", module, input_shape=(1, case.size, case.size))
            self._images["retina"] = photo(case.size)[:1]
        else:
            self.con.register_model(case.name, build(case), input_shape=(3, case.size, case.size))
            self._images[case.name] = photo(case.size)

    def query(self, asked: Asked) -> Query:
        text = f"EXPLAIN OCCLUSION OF $image USING MODEL {asked.model} {asked.clauses()}"
        found: Query = self.con.sql(text, params={"image": self._images[asked.model]})
        return found

    def warm_up(self, asked: Asked) -> None:
        """Lay out a model's weights, which only the first of its queries does; the session does not learn from it."""
        query = self.query(asked)
        plan, prepared = query.plan(), query.bound.prepare(0)
        captured = self.con.graphs.captured(query.bound.model).model
        assert captured is not None
        assert plan.tensor is not None
        tiles = plan.tensor.tiling.tiles(plan.occlusions)[:2]
        list(execute(plan, prepared.image.input, prepared.fill.values, weights=captured.weights, tiles=tiles))


def _retina() -> Any:
    """The shipped model."""
    return example("retina/model").load(EXAMPLES / "retina" / "retina.safetensors")


def measure(query: Query) -> dict[str, Any]:
    """Run a query whose plan is ready."""
    query.plan()
    before = _memory("VmRSS")
    can_reset = _reset_peak()
    started = time.perf_counter()
    heatmap = query.run()
    wall = time.perf_counter() - started
    grown = _memory("VmHWM") - before if can_reset else None
    assert isinstance(heatmap, krypton.Heatmap)
    return {"seconds": heatmap.info["seconds"], "wall_seconds": wall, "memory_bytes": grown}


def _memory(line: str) -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return next(int(text.split()[1]) * 1024 for text in status.read_text().splitlines() if text.startswith(line))


def _reset_peak() -> bool:
    """Let the peak of this process begin anew; whether that can be done here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of a query as one: median times, and the most memory."""
    grown = [one["memory_bytes"] for one in runs if one["memory_bytes"] is not None]
    seconds = {name: statistics.median(one[name] for one in runs) for name in ("seconds", "wall_seconds")}
    return seconds | {"memory_bytes": max(grown) if grown else None, "runs": [one["seconds"] for one in runs]}


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All rows, a row per judged query."""
    generator, session, modes = random.Random(arguments.seed), Session(), list(MODES)
    cases, learnt, judged = [Case.parse(text) for text in arguments.models], arguments.learnt, arguments.judged

    def learn(case: Case, numbers: Sequence[int]) -> None:
        for i in numbers:
            session.query(draw(case.name, case.size, LEARNT_MODES[i % len(LEARNT_MODES)], LEARNT, generator)).run()
        say(f"{case.name}: {len(numbers)} queries learnt from")

    if not arguments.default_profile:
        say("CALIBRATE")
        session.con.sql("CALIBRATE")
    questions: list[tuple[Asked, Estimate]] = []
    for place, case in enumerate(cases):
        session.register(case)
        mine = [draw(case.name, case.size, modes[i % len(modes)], JUDGED, generator) for i in range(judged)]
        session.warm_up(draw(case.name, case.size, "exact", LEARNT, generator))
        questions += [(asked, session.query(asked).estimate()) for asked in mine]
        say(f"{case.name}: {judged} queries estimated, knowing {place} models")
        learn(case, range(learnt // 2))
    for case in cases:
        learn(case, range(learnt // 2, learnt))
    prepared = []
    for asked, before in questions:
        query = session.query(asked)
        prepared.append((asked, before, query, query.estimate()))
    generator.shuffle(prepared)  # what disturbs the machine for a while is not to hit one model alone
    rounds = []
    for number in range(arguments.rounds):
        rounds.append([measure(query) for _, _, query, _ in prepared])
        say(f"round {number + 1}: {len(prepared)} queries run")
    rows = []
    for (asked, before, _, after), *runs in zip(prepared, *rounds, strict=True):
        actual, first = together(runs), asked.model == cases[0].name
        rows.append(asdict(asked) | {"actual": actual, "unseen": asdict(before), "known": asdict(after), "first_model": first})
        say(f"{asked.model} {asked.mode} {asked.clauses()}: {after.seconds:.2f} s estimated, {actual['seconds']:.2f} s actual")
    return rows


def off(row: dict[str, Any], which: str) -> float:
    """The relative error of an estimate of seconds."""
    return float(abs(row[which]["seconds"] / row["actual"]["seconds"] - 1))


def summarise(rows: Sequence[dict[str, Any]], which: str) -> dict[str, Any]:
    """Errors over some rows, and how often the actual time was within the interval."""
    errors = [off(row, which) for row in rows]
    within = [row[which]["low"] <= row["actual"]["seconds"] <= row[which]["high"] for row in rows]
    ratios = [row[which]["memory_bytes"] / row["actual"]["memory_bytes"] for row in rows if row["actual"]["memory_bytes"]]
    return {
        "queries": len(rows),
        "median": statistics.median(errors),
        "90th percentile": float(np.quantile(errors, 0.9)),
        "within": sum(within) / len(within),
        "memory": statistics.median(ratios) if ratios else None,
        "memory_range": [float(np.quantile(ratios, q)) for q in (0.1, 0.9)] if ratios else None,
    }


def repeated(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far each run of a query is from the mean of its other runs."""
    runs = [row["actual"]["runs"] for row in rows]
    errors = [abs(one / statistics.mean(of[:place] + of[place + 1 :]) - 1) for of in runs for place, one in enumerate(of)]
    return _errors(errors)


def perfect(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How far an estimate that is right on average would be from the median of as many runs as were made: by the spread of
    the runs of each query, as logarithms, drawn again. No estimate can be better; how much worse one is, is its own fault."""
    of = np.log([row["actual"]["runs"] for row in rows])
    count = of.shape[1]
    residuals = ((of - of.mean(1, keepdims=True)) * np.sqrt(count / (count - 1))).ravel()
    medians = np.median(np.random.default_rng(0).choice(residuals, (100_000, count)), axis=1)
    return _errors(np.abs(np.exp(-medians) - 1).tolist()) | {"queries": len(rows)}


def _errors(errors: Sequence[float]) -> dict[str, Any]:
    found = {"median": statistics.median(errors), "90th percentile": float(np.quantile(errors, 0.9))}
    return {"queries": len(errors), **found, "within": None, "memory": None, "memory_range": None}


def summaries(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By what was known, then by mode and model."""
    later = [row for row in rows if not row["first_model"]]
    first = [row for row in rows if row["first_model"]]
    groups = [
        ("known model", list(rows), "known"),
        ("unseen model", later, "unseen"),
        ("nothing but the profile", first, "unseen"),
    ]
    for key in ("mode", "model"):
        for value in dict.fromkeys(row[key] for row in rows):
            groups.append((f"known model: {value}", [row for row in rows if row[key] == value], "known"))
            if key == "model" and any(row["model"] == value for row in later):
                groups.append((f"unseen model: {value}", [row for row in later if row[key] == value], "unseen"))
    found = {name: summarise(some, which) for name, some, which in groups if some}
    several = all(len(row["actual"]["runs"]) > 1 for row in rows)
    if several:
        found |= {"a run against the other runs of the same query": repeated(rows), "a perfect estimate": perfect(rows)}
    return found


def table(found: dict[str, dict[str, Any]]) -> Plain:
    """A line per group."""
    rows = []
    for name, summary in found.items():
        memory = summary["memory_range"]
        rows.append([
            name, str(summary["queries"]), f"{summary['median']:.1%}", f"{summary['90th percentile']:.1%}",
            "–" if summary["within"] is None else f"{summary['within']:.0%}",
            "–" if memory is None else f"{summary['memory']:.2f} ({memory[0]:.2f} to {memory[1]:.2f})",
        ])  # fmt: skip
    wanted = ", ".join(f"{name} ≤ {limit:.0%}" for name, limit in WANTED.items())
    return Plain(
        f"errors of estimated seconds (wanted: {wanted}), and memory, estimated over actual",
        ("group", "queries", "median", "90th percentile", "within interval", "memory (10 % to 90 %)"),
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), help="cases as model@size, in the order in which they come"
    )
    parser.add_argument("--learnt", type=int, default=9, help="queries of each model that are learnt from")
    parser.add_argument("--judged", type=int, default=15, help="queries of each model that are judged")
    parser.add_argument("--rounds", type=int, default=3, help="times that each of these is run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default-profile", action="store_true", help="without CALIBRATE")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/estimate.json"))
    arguments = parser.parse_args()
    console = Console(width=160)
    rows = run(arguments, lambda text: console.print(text, style="dim", highlight=False, markup=False))
    found = summaries(rows)
    data = {
        "machine": describe(),
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.estimate", *sys.argv[1:]]),
        "split": {
            "learnt": asdict(LEARNT) | {"queries_per_model": arguments.learnt},
            "judged": asdict(JUDGED) | {"queries_per_model": arguments.judged, "rounds": arguments.rounds},
            "profile": "default" if arguments.default_profile else "CALIBRATE",
        },
        "wanted": WANTED,
        "summary": found,
        "rows": rows,
    }
    write_json(arguments.out, data)
    console.print(rich_table(table(found)))


if __name__ == "__main__":
    main()
