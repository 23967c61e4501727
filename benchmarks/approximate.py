"""How good and how fast approximate maps are: `python -m benchmarks.approximate` writes results/approximate.json.

On the shipped demo model and synthetic scans with a lesion, at stride 4. For each scan the exact map, the naive one and every
setting take turns; quality is that of `krypton.results.compare` against the exact map. Two trivial baselines stand in the same
table: every second row and column exactly, the rest interpolated; and the base score everywhere.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.tables import Plain, markdown, rich_table
from krypton.cli.demo import connect_with_model, find_files
from krypton.executor.stages import bilinear
from krypton.ir.occlusions import Grid
from krypton.planner.stages import evenly
from krypton.results import Heatmap, Quality, compare
from krypton.session import Connection

QUERY = "EXPLAIN OCCLUSION OF $image USING MODEL retina PATCH 16 STRIDE 4"
PATCH, STRIDE = (16, 16), (4, 4)
FIRST_SEED = 1000  # of scans that the model was not trained on
SETTINGS = (
    "keep => 0.999",
    "keep => 0.99",
    "keep => 0.97",
    "keep => 0.93",
    "tau => 0.8",
    "tau => 0.6",
    "drilldown => 0.4, speedup => 2",
    "drilldown => 0.25, speedup => 3",
    "drilldown => 0.1, speedup => 5",
    "keep => 0.99, drilldown => 0.25, speedup => 3",
)
CLOSE = 0.05  # an estimate of SSIM that is no further off is a good one


def scans(count: int) -> Iterator[np.ndarray[Any, Any]]:
    """Images (H, W, 3) of scans with a lesion, the kinds in turn."""
    phantoms = runpy.run_path(str(find_files() / "phantoms.py"))
    kinds = phantoms["KINDS"][1:]
    for number in range(count):
        image = phantoms["generate"](kinds[number % len(kinds)], FIRST_SEED + number // len(kinds)).image
        yield np.repeat(image[..., None], 3, 2)


def judge(approximate: Heatmap, exact: Heatmap, seconds: float) -> dict[str, Any]:
    """One map: its quality, what it says of itself, and how much faster it was than one that took so many seconds."""
    found: Quality = compare(approximate, exact)
    said = approximate.quality.ssim if approximate.quality is not None else None
    return {
        "ssim": found.ssim,
        "rmse": found.relative_rmse,
        "spearman": found.spearman,
        "top10": found.top10_overlap,
        "said": said,
        "faster": seconds / approximate.info["seconds"],
    }


def baselines(exact: Heatmap) -> dict[str, Heatmap]:
    """What a map is compared with that nothing clever made; `seconds` are none of theirs."""
    rows, columns, classes = exact.logits.shape
    height, width = exact.image_size
    lattice = evenly(rows, 2), evenly(columns, 2)
    between = bilinear(exact.logits.reshape(-1, classes), Grid((height, width), PATCH, STRIDE), lattice)
    return {
        "every second row and column": replace(exact, logits=between.view(rows, columns, classes)),
        "base score everywhere": replace(exact, logits=exact.base_logits.expand(rows, columns, classes)),
    }


def measure(con: Connection, image: np.ndarray[Any, Any], settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """All maps of one image, by setting."""

    def run(clause: str) -> Heatmap:
        answer = con.sql(f"{QUERY} {clause}", params={"image": image}).run()
        assert isinstance(answer, Heatmap)
        return answer

    naive, exact = run("MODE NAIVE"), run("")
    seconds = exact.info["seconds"]
    found = {"MODE NAIVE": judge(naive, exact, seconds)}
    for name, baseline in baselines(exact).items():
        found[name] = judge(baseline, exact, seconds) | {"faster": None}
    for setting in settings:
        approximate = run(f"MODE APPROXIMATE WITH ({setting})")
        seconds = min(seconds, run("").info["seconds"])  # beside the one that it is compared with
        found[setting] = judge(approximate, exact, seconds)
    return found


def table(rows: list[dict[str, dict[str, Any]]]) -> Plain:
    """Medians over the images; images whose exact map is flat have no SSIM, and do not count there."""
    headings = ("WITH", "over exact", "over naive", "SSIM, median", "least", "RMSE / range", "rank correlation", "top 10 %")
    lines = []
    for name in rows[0]:
        of = [row[name] for row in rows]
        known = [entry["ssim"] for entry in of if entry["ssim"] is not None]
        said = [abs(e["said"] - e["ssim"]) <= CLOSE for e in of if e["said"] is not None and e["ssim"] is not None]
        ranks = [entry["spearman"] for entry in of if entry["spearman"] is not None]
        naive = [row["MODE NAIVE"]["faster"] for row in rows]
        ratios = [(e["faster"], e["faster"] / slow) for e, slow in zip(of, naive, strict=True) if e["faster"]]
        times = [f"{statistics.median(column):.1f}×" for column in zip(*ratios, strict=True)] or ["–", "–"]
        lines.append(
            (
                f"`{name}`" if "=>" in name else name,
                *times,
                f"{statistics.median(known):.3f}",
                f"{min(known):.3f}",
                f"{statistics.median(entry['rmse'] for entry in of):.1%}",
                f"{statistics.median(ranks):.2f}" if ranks else "–",
                f"{statistics.median(entry['top10'] for entry in of):.2f}",
                f"{statistics.mean(said):.0%}" if said else "–",
            )
        )
    return Plain("approximate maps of the demo model", (*headings, f"estimate within {CLOSE}"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="as in WITH (...)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/approximate.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    console, rows = Console(), []
    with connect_with_model(find_files()) as con:
        con.sql("SET krypton.reuse_results = false")
        for number, image in enumerate(scans(arguments.scans), 1):
            if number == 1:
                measure(con, image, ())  # kernels are made ready
            rows.append(measure(con, image, tuple(arguments.settings)))
            console.print(f"{number} of {arguments.scans} scans")
            result = {"machine": describe(), "commit": commit(), "rows": rows}
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    found = table(rows)
    console.print(rich_table(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
