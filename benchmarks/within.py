"""Are deadlines kept, and how good are the maps? `python -m benchmarks.within` writes results/within.json.

Queries WITHIN 1, 3 and 10 SECONDS on models of different weight, each on several images: 60 runs, and where positions were
made cheaper another with `keep => 1`, so that nothing is left out but positions. A run is timed from `run()` to the map, with
model and plan ready, and kept when it takes at most 1.1 times the deadline. Each map is compared with the exact one, which is
computed once per image. The models are the shipped one and those of two of the papers' settings (`settings`). Runs that the
file has already are not repeated: the benchmark may be run in slices (`--stop-after`).
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

from rich.console import Console

from benchmarks.approximate import DEMO, Subject
from benchmarks.clock import timed
from benchmarks.machine import commit, describe
from benchmarks.record import write_json
from benchmarks.tables import Plain, markdown, rich_table
from krypton.results import Heatmap, compare
from krypton.session import Connection

DEADLINES = (1, 3, 10)
KEPT = 1.1
WANTED = {"kept": 0.95, "runs": 60}


PLAIN = "WITH (keep => 1)"


@dataclass(frozen=True)
class Asked:
    """A model (as `approximate` has them), what is asked of it, and on how many images."""

    name: str
    clauses: str
    images: int

    @property
    def text(self) -> str:
        return f"EXPLAIN OCCLUSION OF $image USING MODEL subject {self.clauses}"


SUBJECTS = (
    Asked(DEMO, "PATCH 16 STRIDE 2", 6),
    Asked("resnet18/natural", "PATCH 16 STRIDE 4", 8),
    Asked("vgg16/natural", "PATCH 16 STRIDE 4", 6),
)


def measure(con: Connection, asked: Asked, image: Any, exact: Heatmap, deadline: int, options: str = "") -> dict[str, Any]:
    """One run."""
    query = con.sql(f"{asked.text} WITHIN {deadline} SECONDS {options}", params={"image": image})
    query.plan()
    heatmap, seconds = timed(query.run)
    assert isinstance(heatmap, Heatmap)
    found, said = compare(heatmap, exact), heatmap.quality
    return {
        "model": asked.name,
        "deadline": deadline,
        "seconds": seconds,
        "ratio": seconds / deadline,
        "approximations": heatmap.info["approximations"],
        "exact_positions": int(heatmap.exact.sum()),
        "positions": heatmap.exact.numel(),
        "ssim": found.ssim,
        "rmse": found.relative_rmse,
        "said": None if said is None else said.ssim,
        "held_out": 0 if said is None else said.positions,
    }


def run(asked: Asked, rows: list[dict[str, Any]], until: float) -> Iterator[dict[str, Any]]:
    """The rows of a subject that are missing, as long as there is time."""
    subject = Subject(asked.name)
    with subject.connect() as con:
        con.sql("SET krypton.reuse_results = false")
        for number, image in enumerate(subject.images(asked.images, 0)):
            done = [row["deadline"] for row in rows if (row["model"], row["image"]) == (asked.name, number)]
            missing = [deadline for deadline in DEADLINES if deadline not in done]
            if not missing or time.monotonic() > until:
                continue
            if not number:
                con.sql(f"{asked.text} IN REGION (0, 0, 48, 48)", params={"image": image}).run()  # kernels are made ready
            exact = con.sql(asked.text, params={"image": image}).run()
            for deadline in missing:
                row = measure(con, asked, image, exact, deadline)
                plain = measure(con, asked, image, exact, deadline, PLAIN) if len(row["approximations"]) > 1 else row
                about = {"image": number, "exact_seconds": exact.info["seconds"], "commit": commit()}
                yield about | row | {"plain": {name: plain[name] for name in ("seconds", "ssim", "said")}}


def table(rows: list[dict[str, Any]]) -> Plain:
    """A line per model and deadline, and one for all."""
    lines = []
    groups = {(row["model"], row["deadline"]) for row in rows}
    order = {subject.name: place for place, subject in enumerate(SUBJECTS)}
    for model, deadline in sorted(groups, key=lambda group: (order[group[0]], group[1])):
        some = [row for row in rows if (row["model"], row["deadline"]) == (model, deadline)]
        seen = [row["ssim"] for row in some if row["ssim"] is not None]
        plain = [row["plain"]["ssim"] for row in some if row["plain"]["ssim"] is not None]
        said = [abs(row["said"] - row["ssim"]) for row in some if row["said"] is not None and row["ssim"] is not None]
        lines.append(
            (
                model,
                f"{deadline} s",
                str(len(some)),
                f"{statistics.median(row['exact_seconds'] for row in some):.1f} s",
                f"{statistics.median(row['ratio'] for row in some):.2f}",
                f"{max(row['ratio'] for row in some):.2f}",
                f"{sum(len(row['approximations']) > 1 for row in some)} of {len(some)}",
                f"{statistics.median(seen):.3f}" if seen else "–",
                f"{statistics.median(plain):.3f}" if plain else "–",
                f"{min(seen):.3f}" if seen else "–",
                f"{statistics.median(row['rmse'] for row in some):.1%}",
                f"{statistics.median(said):.3f}" if said else "–",
            )
        )
    headings = (
        "model", "within", "runs", "exact map", "time / deadline", "most", "cheaper positions", "SSIM, median", "without",
        "least", "RMSE / range", "estimate off by",
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
