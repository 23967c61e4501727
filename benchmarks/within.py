"""Are deadlines kept, and how good are the maps? `python -m benchmarks.within` writes results/within.json.

Queries WITHIN 1, 3 and 10 SECONDS on models of different weight, each on several images: 60 runs. A run is timed from `run()`
to the map, with model and plan ready, and kept when it takes at most 1.1 times the deadline. Each map is compared with the
exact one, which is computed once per image. ResNet18 and VGG16 have random weights, so their maps are of the logit. Runs
that the file has already are not repeated: the benchmark may be run in slices (`--stop-after`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.approximate import scans
from benchmarks.cases import Case, build, photo
from benchmarks.clock import timed
from benchmarks.machine import commit, describe
from benchmarks.record import write_json
from benchmarks.tables import Plain, markdown, rich_table
from krypton.cli.demo import connect_with_model, find_files
from krypton.results import Heatmap, compare
from krypton.session import Connection

DEADLINES = (1, 3, 10)
KEPT = 1.1
WANTED = {"kept": 0.95, "runs": 60}


@dataclass(frozen=True)
class Subject:
    """A model, what is asked of it, on how many images, and how often on each."""

    name: str
    size: int
    clauses: str
    images: int
    times: int = 1


SUBJECTS = (
    Subject("retina", 160, "PATCH 16 STRIDE 2", 6),
    Subject("resnet18", 224, "PATCH 16 STRIDE 4 SCORE LOGIT", 4, 2),
    Subject("vgg16", 224, "PATCH 16 STRIDE 4 SCORE LOGIT", 2, 3),
)


def images(subject: Subject) -> Iterator[Any]:
    """Scans for the demo model; the photo, turned and mirrored, for the others."""
    if subject.name == "retina":
        yield from scans(subject.images)
        return
    image = photo(subject.size)
    for number in range(subject.images):
        turned: Tensor = torch.rot90(image, number % 4, (1, 2))
        yield (turned.flip(2) if number >= 4 else turned).contiguous()


def open_session(subject: Subject) -> Connection:
    """A session that knows the model, and computes everything anew."""
    con = connect_with_model(find_files())
    con.sql("SET krypton.reuse_results = false")
    if subject.name != "retina":
        shape = 3, subject.size, subject.size
        con.register_model(subject.name, build(Case(subject.name, subject.size)), input_shape=shape)
    return con


def measure(con: Connection, subject: Subject, image: Any, exact: Heatmap, deadline: int) -> dict[str, Any]:
    """One run."""
    text = f"EXPLAIN OCCLUSION OF $image USING MODEL {subject.name} {subject.clauses} WITHIN {deadline} SECONDS"
    query = con.sql(text, params={"image": image})
    query.plan()
    heatmap, seconds = timed(query.run)
    assert isinstance(heatmap, Heatmap)
    found, said = compare(heatmap, exact), heatmap.quality
    return {
        "model": subject.name,
        "deadline": deadline,
        "seconds": seconds,
        "ratio": seconds / deadline,
        "exact_positions": int(heatmap.exact.sum()),
        "positions": heatmap.exact.numel(),
        "ssim": found.ssim,
        "rmse": found.relative_rmse,
        "said": None if said is None else said.ssim,
        "held_out": 0 if said is None else said.positions,
    }


def run(subject: Subject, rows: list[dict[str, Any]], until: float) -> Iterator[dict[str, Any]]:
    """The rows of a subject that are missing, as long as there is time."""
    con, text = open_session(subject), f"EXPLAIN OCCLUSION OF $image USING MODEL {subject.name} {subject.clauses}"
    for number, image in enumerate(images(subject)):
        done = [row["deadline"] for row in rows if (row["model"], row["image"]) == (subject.name, number)]
        missing = [deadline for deadline in DEADLINES for _ in range(subject.times - done.count(deadline))]
        if missing and time.monotonic() < until:
            exact = con.sql(text, params={"image": image}).run()
            for deadline in missing:
                row = measure(con, subject, image, exact, deadline)
                yield {"image": number, "exact_seconds": exact.info["seconds"], **row}


def table(rows: list[dict[str, Any]]) -> Plain:
    """A line per model and deadline, and one for all."""
    lines = []
    groups = {(row["model"], row["deadline"]) for row in rows}
    order = {subject.name: place for place, subject in enumerate(SUBJECTS)}
    for model, deadline in sorted(groups, key=lambda group: (order[group[0]], group[1])):
        some = [row for row in rows if (row["model"], row["deadline"]) == (model, deadline)]
        seen = [row["ssim"] for row in some if row["ssim"] is not None]
        said = [abs(row["said"] - row["ssim"]) for row in some if row["said"] is not None and row["ssim"] is not None]
        lines.append(
            (
                model,
                f"{deadline} s",
                str(len(some)),
                f"{statistics.median(row['exact_seconds'] for row in some):.1f} s",
                f"{statistics.median(row['ratio'] for row in some):.2f}",
                f"{max(row['ratio'] for row in some):.2f}",
                f"{statistics.median(row['exact_positions'] / row['positions'] for row in some):.0%}",
                f"{statistics.median(seen):.3f}" if seen else "–",
                f"{min(seen):.3f}" if seen else "–",
                f"{statistics.median(row['rmse'] for row in some):.1%}",
                f"{statistics.median(said):.3f}" if said else "–",
            )
        )
    headings = (
        "model", "within", "runs", "exact map", "time / deadline", "most", "positions", "SSIM, median", "least", "RMSE / range",
        "estimate off by",
    )  # fmt: skip
    return Plain(f"{kept(rows):.0%} of {len(rows)} deadlines kept within 10 % (wanted: {WANTED['kept']:.0%})", headings, lines)


def kept(rows: list[dict[str, Any]]) -> float:
    return statistics.mean(row["ratio"] <= KEPT for row in rows) if rows else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="*", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds, after which no image is begun")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/within.json"))
    arguments = parser.parse_args()
    until, console = time.monotonic() + arguments.stop_after, Console(width=160)
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    for subject in SUBJECTS:
        if subject.name in arguments.models:
            for row in run(subject, rows, until):
                rows.append(row)
                console.print(f"{row['model']} image {row['image']} within {row['deadline']} s: {row['seconds']:.2f} s")
                data = {"machine": describe(), "commit": commit(), "wanted": WANTED, "kept": kept(rows), "rows": rows}
                write_json(arguments.out, data)
    found = table(rows)
    console.print(rich_table(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
