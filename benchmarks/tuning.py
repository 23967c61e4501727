"""Do tuned settings and goals keep their promise: `python -m benchmarks.tuning` writes results/tuning.json.

On the shipped demo model and synthetic scans, normal ones and those with a lesion. TUNE MODEL runs over some scans; then others
are explained with `WITH (ssim => x)`, once in a session that has the tuning and once in one that has not and so measures on the
image itself. Each map is compared with the exact one of its image; flat maps, which have no SSIM, are counted and left out.
"""

from __future__ import annotations

import argparse
import runpy
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.record import write_json
from benchmarks.tables import Plain, markdown, rich_table
from krypton.cli.demo import connect_with_model, find_files
from krypton.planner.tuning import MISS
from krypton.results import compare
from krypton.session import Connection

TUNED_ON, TESTED_ON = 7000, 6000
"""First seeds of the scans; the model was trained on none of them."""

TARGETS = (0.8, 0.9, 0.95)


def scans(count: int, first_seed: int) -> list[np.ndarray[Any, Any]]:
    """Scans (H, W, 3), uint8, all kinds in turn."""
    phantoms = runpy.run_path(str(find_files() / "phantoms.py"))
    kinds = phantoms["KINDS"]
    images = [phantoms["generate"](kinds[n % len(kinds)], first_seed + n // len(kinds)).image for n in range(count)]
    return [np.repeat(image[..., None], 3, 2) for image in images]


def tune(con: Connection, count: int, stride: int) -> Any:
    """One tuning for all targets: it keeps what it sampled."""
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(scans(count, TUNED_ON)):
            Image.fromarray(image).save(Path(folder) / f"{number:03}.png")
        return con.sql(f"TUNE MODEL retina OVER '{folder}' STRIDE {stride} FOR SSIM 0.9 SAMPLE {count}", progress=True)


def measure(image: np.ndarray[Any, Any], stride: int, sessions: dict[str, Connection]) -> list[dict[str, Any]]:
    """Every target on one image by every session; the exact map is timed anew beside each."""
    query, given = f"EXPLAIN OCCLUSION OF $image USING MODEL retina STRIDE {stride}", {"image": image}
    rows = []
    for target in TARGETS:
        for name, con in sessions.items():
            exact = con.sql(query, given).run()
            found = con.sql(f"{query} MODE APPROXIMATE WITH (ssim => {target})", given).run()
            rows.append(
                {
                    "target": target,
                    "by": name,
                    "ssim": compare(found, exact).ssim,
                    "said": None if found.quality is None else found.quality.ssim,
                    "faster": exact.info["seconds"] / found.info["seconds"],
                    "computed": float(found.exact.float().mean()),
                    "goal": found.info.get("goal", found.info["notes"][0]),
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> Plain:
    """By target and session: on how many maps the target was met, or missed by little, and at what speed."""
    near = f"met or missed by at most {MISS}"
    headings = ("SSIM", "chosen", "met", near, "least", "median", "over exact, median")
    lines = []
    for target in TARGETS:
        for name in dict.fromkeys(row["by"] for row in rows):
            of = [row for row in rows if (row["target"], row["by"]) == (target, name) and row["ssim"] is not None]
            ssim = [row["ssim"] for row in of]
            lines.append(
                (
                    f"{target:g}",
                    name,
                    f"{sum(found >= target for found in ssim)} of {len(ssim)}",
                    f"{sum(found >= target - MISS for found in ssim)} of {len(ssim)}",
                    f"{min(ssim):.3f}",
                    f"{statistics.median(ssim):.3f}",
                    f"{statistics.median(row['faster'] for row in of):.1f}×",
                )
            )
    return Plain("goals on images that were not tuned on", headings, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tune", type=int, default=30, help="scans to tune on")
    parser.add_argument("--test", type=int, default=30, help="other scans to test on")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    console, rows = Console(), []
    with connect_with_model(find_files()) as tuned, connect_with_model(find_files()) as untuned:
        for con in (tuned, untuned):
            con.sql("SET krypton.reuse_results = false")  # times are compared
        tuning = tune(tuned, arguments.tune, arguments.stride)
        console.print(str(tuning))
        sessions = {"by tuning": tuned, "on the image itself": untuned}
        for image in scans(arguments.test, TESTED_ON):
            rows += measure(image, arguments.stride, sessions)
    sampled = [{"setting": s.setting.options(), "ssim": s.ssim, "cost": s.cost} for s in tuning.sampled]
    about = {"machine": describe(), "commit": commit(), "stride": arguments.stride}
    chosen = {str(target): tuning.for_ssim(target).setting.options() for target in TARGETS}
    flat = {"tuning": tuning.flat, "test": sum(row["ssim"] is None for row in rows) // (len(TARGETS) * len(sessions))}
    result = {**about, "tuning": str(tuning), "chosen": chosen, "flat": flat, "sampled": sampled, "rows": rows}
    write_json(arguments.out, result)
    found = table(rows)
    console.print(rich_table(found))
    print(markdown(found))
    print(f"{flat['test']} of {arguments.test} test scans have flat maps")


if __name__ == "__main__":
    main()
