"""Is any CNN slower than stock inference? Every one of torchvision and many of timm: `python -m benchmarks.zoo_speed`.

Exact time per position (patch 16, stride 4) on evenly drawn tiles of the whole map, against channels_last inference in its best
batch of 8 or 32, and with `--compiled` against torch.compile with freezing (a minute more for each model). All take turns in
every round. Each model has a process of its own under the tuned allocator. Results are written after every model, and models
that have one are not measured again (`--again` does).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.cases import Case, Subject
from benchmarks.contenders import Running, Start, Stock, compiled
from benchmarks.machine import commit, describe, environment
from benchmarks.record import write_json, write_text
from benchmarks.tiled import Tiled
from benchmarks.zoo import TIMM

DEFAULT_OUT = Path("benchmarks/results/zoo_speed.json")
WANTED = 0.95  # of the fastest stock inference's speed
POSITIONS = 96  # per round at least
TRANSFORMERS = ("vit", "swin", "maxvit", "edgenext", "poolformer")
SIZES = {"inception_v3": 299, "timm:inception_resnet_v2": 299, "timm:xception41": 299}


def names() -> list[str]:
    """Classifiers without attention; the very largest regnet takes half a minute for a batch."""
    import torchvision

    listed = torchvision.models.list_models(module=torchvision.models) + [f"timm:{name}" for name in TIMM]
    return [n for n in listed if not n.removeprefix("timm:").startswith((*TRANSFORMERS, "regnet_y_128gf"))]


def measure(name: str, rounds: int, with_compiled: bool) -> dict[str, Any]:
    """One row, times in milliseconds per position."""
    from krypton.errors import CaptureError
    from krypton.planner.optimizer import plan_query

    torch.set_grad_enabled(False)
    subject = Subject(Case(name, SIZES.get(name, 224)))
    row: dict[str, Any] = {"model": name, "size": subject.case.size, "commit": commit()}
    try:
        plan = plan_query(subject.captured, subject.grid, model=name)
    except CaptureError as error:
        return row | {"refused": str(error)}
    assert plan.tensor is not None
    tiles = plan.tensor.tiling.tiles(plan.occlusions)
    per_round = -(-POSITIONS * len(tiles) // plan.occlusions.count)
    stock = [Stock(subject, subject.channels_last, torch.channels_last, batch) for batch in (8, 32)]
    running: dict[str, Running] = {"channels_last": min(stock, key=lambda s: min(s.tried.values()))}
    if with_compiled:
        running["compiled"] = compiled(Start(subject, rounds, per_round, running))
    running["exact"] = Tiled(subject.captured, plan, subject.image, subject.fill, rounds, per_round)
    times: dict[str, list[float]] = {key: [] for key in running}
    for turn in range(rounds):
        for key in running:
            times[key].append(running[key].round(turn))
    milliseconds = {key: statistics.median(values) + running[key].charge for key, values in times.items()}
    fastest = min(value for key, value in milliseconds.items() if key != "exact")
    return row | {
        "ms": milliseconds,
        "rounds_ms": times,
        "ratio": fastest / milliseconds["exact"],
        "modes": Counter(node.mode for node in plan.tensor.graph),
        "notes": list(plan.notes),
    }


def in_a_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `measure` finds in a fresh process; a row that says so where that fails."""
    with TemporaryDirectory() as folder:
        result = Path(folder, "row.json")
        command = [sys.executable, "-m", "benchmarks.zoo_speed", name, "--row", str(result), "--rounds", str(arguments.rounds)]
        command += ["--compiled"] if arguments.compiled else []
        status = subprocess.run(command, check=False, env=environment("tuned")).returncode
        if status:
            return {"model": name, "size": SIZES.get(name, 224), "refused": f"exit status {status}"}
        row: dict[str, Any] = json.loads(result.read_text())
        return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, slowest first, and below it who is too slow."""
    measured = sorted((row for row in rows if "ms" in row), key=lambda row: row["ratio"])
    lines = [
        "# Exact explanations against stock inference, model by model",
        "",
        "Written by `python -m benchmarks.zoo_speed`: milliseconds per position, patch 16, stride 4; *ratio*: of the fastest",
        f"stock inference's time to ours. Wanted of every model: {WANTED}.",
        "",
        "| model | input | channels_last | compiled | exact | ratio | operators on boxes / on whole maps |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in measured:
        ms, modes = row["ms"], row["modes"]
        cells = [row["model"], f"{row['size']}²", f"{ms['channels_last']:.2f}"]
        cells += [f"{ms['compiled']:.2f}" if "compiled" in ms else "–", f"{ms['exact']:.2f}", f"{row['ratio']:.2f}×"]
        lines.append("| " + " | ".join([*cells, f"{modes.get('delta', 0)} / {modes.get('full', 0)}"]) + " |")
    slow = [f"{row['model']} ({row['ratio']:.2f}×)" for row in measured if row["ratio"] < WANTED]
    lines += ["", f"Below {WANTED}: " + (", ".join(slow) or f"none of {len(measured)}") + "."]
    lines += [f"{row['model']}: not measured, {row['refused']}." for row in rows if "refused" in row]
    return "\n".join(lines) + "\n"


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    data = {"machine": describe(), "command": "python -m benchmarks.zoo_speed", "results": rows}
    write_json(path, data)
    write_text(path.with_suffix(".md"), markdown(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", help="names, timm:name for those of timm (default: all)")
    parser.add_argument("--compiled", action="store_true", help="against torch.compile with freezing as well")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="measure models that have a result, too")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where to write the JSON; the table goes beside it")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        arguments.row.write_text(json.dumps(measure(arguments.models[0], arguments.rounds, arguments.compiled)))
        return
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else []
    done = set() if arguments.again else {row["model"] for row in rows if "ms" in row}
    for name in arguments.models or names():
        if name in done:
            continue
        row = in_a_process(name, arguments)
        rows = [other for other in rows if other["model"] != name] + [row]
        save(arguments.out, rows)
        print(f"{name}: {row['ratio']:.2f}×" if "ratio" in row else f"{name}: {row['refused']}", flush=True)


if __name__ == "__main__":
    main()
