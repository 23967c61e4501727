"""Do tuned settings and goals keep their promise: `python -m benchmarks.tuning` writes results/tuning.json.

On the shipped demo model, and on those of the papers' settings that are asked for (see `settings`). TUNE MODEL runs over some
pictures; then others are explained with `WITH (ssim => x)`, once in a session that has the tuning and once in one that has not
and so measures on the image itself. Each map is compared with the exact one of its image; flat maps, which have no SSIM, are
counted and left out. A setting's results are replaced, others are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.approximate import DEMO, Subject
from benchmarks.examples import example
from benchmarks.machine import commit, describe, with_tuned_allocator
from benchmarks.record import write_json
from benchmarks.settings import NINE
from benchmarks.tables import Plain, markdown, rich_table
from krypton.planner.tuning import MISS
from krypton.results import compare
from krypton.session import Connection

TUNED_ON, TESTED_ON = 7000, 6000
"""Numbers of the first pictures; models were trained on none of them."""

TARGETS = (0.8, 0.9, 0.95)

Pixels = np.ndarray[Any, Any]


def pictures(subject: Subject, count: int, first: int) -> list[Pixels]:
    """Pictures (H, W, 3), uint8, of all kinds in turn; of the demo model normal ones, too."""
    if subject.name != DEMO:
        return list(islice(subject.images(count, first), count))
    phantoms = example("retina/phantoms")
    images = [phantoms.generate(phantoms.KINDS[n % 4], first + n // 4).image for n in range(count)]
    return [np.repeat(image[..., None], 3, 2) for image in images]


def tune(con: Connection, images: Iterable[Pixels], stride: int) -> Any:
    """One tuning for all targets: it keeps what it sampled."""
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            Image.fromarray(image).save(Path(folder) / f"{number:03}.png")
        return con.sql(f"TUNE MODEL subject OVER '{folder}' STRIDE {stride} FOR SSIM 0.9 SAMPLE {number + 1}", progress=True)


def measure(image: Pixels, stride: int, sessions: dict[str, Connection]) -> list[dict[str, Any]]:
    """Every target on one image by every session; exact maps are made before and after them, and the faster one counts."""
    query, given = f"EXPLAIN OCCLUSION OF $image USING MODEL subject STRIDE {stride}", {"image": image}
    first = next(iter(sessions.values()))
    exact, rows = first.sql(query, given).run(), []
    for target in TARGETS:
        for name, con in sessions.items():
            found = con.sql(f"{query} MODE APPROXIMATE WITH (ssim => {target})", given).run()
            rows.append(
                {
                    "target": target,
                    "by": name,
                    "ssim": compare(found, exact).ssim,
                    "said": None if found.quality is None else found.quality.ssim,
                    "seconds": found.info["seconds"],
                    "computed": float(found.exact.float().mean()),
                    "goal": found.info.get("goal", found.info["notes"][0]),
                }
            )
    seconds = min(exact.info["seconds"], first.sql(query, given).run().info["seconds"])
    return [row | {"faster": seconds / row["seconds"]} for row in rows]


def run(subject: Subject, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Everything of one model and set of pictures."""
    rows = []
    with subject.connect() as tuned, subject.connect() as untuned:
        for con in (tuned, untuned):
            con.sql("SET krypton.reuse_results = false")  # times are compared
        tuning = tune(tuned, pictures(subject, arguments.tune, TUNED_ON), arguments.stride)
        console.print(str(tuning))
        sessions = {"by tuning": tuned, "on the image itself": untuned}
        for image in pictures(subject, arguments.test, TESTED_ON):
            rows += measure(image, arguments.stride, sessions)
    sampled = [{"setting": s.setting.options(), "ssim": s.ssim, "cost": s.cost} for s in tuning.sampled]
    about = {"setting": subject.name, "commit": commit(), "stride": arguments.stride} | subject.about
    chosen = {str(target): tuning.for_ssim(target).setting.options() for target in TARGETS}
    flat = {"tuning": tuning.flat, "test": sum(row["ssim"] is None for row in rows) // (len(TARGETS) * len(sessions))}
    return {**about, "tuning": str(tuning), "chosen": chosen, "flat": flat, "sampled": sampled, "rows": rows}


def table(result: dict[str, Any]) -> Plain:
    """By target and session: on how many maps the target was met, or missed by little, and at what speed."""
    near = f"met or missed by at most {MISS}"
    headings = ("SSIM", "chosen", "met", near, "least", "median", "over exact, median")
    lines = []
    for target in TARGETS:
        for name in dict.fromkeys(row["by"] for row in result["rows"]):
            of = [row for row in result["rows"] if (row["target"], row["by"]) == (target, name) and row["ssim"] is not None]
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
    title = f"{result['setting']}: goals on pictures that were not tuned on, stride {result['stride']}"
    return Plain(f"{title}; {result['flat']['test']} flat maps are left out", headings, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [DEMO, *map(str, NINE)]
    parser.add_argument("--settings", nargs="*", default=[DEMO], choices=names, metavar="MODEL/SET", help=", ".join(names))
    parser.add_argument("--tune", type=int, default=30, help="pictures to tune on")
    parser.add_argument("--test", type=int, default=30, help="other pictures to test on")
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuning.json"))
    arguments = parser.parse_args()
    with_tuned_allocator()
    console, machine = Console(width=160), describe()
    for setting in arguments.settings:
        result = run(Subject(setting), arguments, console)
        saved = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else []
        kept = [other for other in saved if other["setting"] != setting]
        found = sorted([*kept, result | {"machine": machine}], key=lambda one: names.index(one["setting"]))
        write_json(arguments.out, {"command": "python -m benchmarks.tuning", "results": found})
        console.print(rich_table(table(result)))
        print(markdown(table(result)))


if __name__ == "__main__":
    main()
