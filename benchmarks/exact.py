"""Exact queries against everything else that computes the same map, in one run and interleaved: `python -m benchmarks.exact`.

Every case runs in a process of its own, once under a tuned allocator and, for the cases that are compared with Captum, once
under the default one, which is what users of peers have. All contenders of a case (see `contenders`) take turns in every round,
on the same photo, patch 16, stride 4; times are medians over rounds. Ratios are what carries over to other machines. The JSON
is written after every case; rows of the same case and allocator are replaced, others stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from benchmarks import tables, theory
from benchmarks.cases import Case, Subject, even
from benchmarks.contenders import CONTENDERS, Running, Start
from benchmarks.machine import Allocator, allocator_is_tuned, commit, describe, environment, gemm_gflops
from benchmarks.record import write_json
from benchmarks.targets import WANTED, wanted

DEFAULT_OUT = Path("benchmarks/results/exact.json")


def measure(case: Case, rounds: int, tiles: int, left_out: set[str]) -> dict[str, Any]:
    """All contenders of one case, as JSON data; times in milliseconds per position."""
    torch.set_grad_enabled(False)
    allocator: Allocator = "tuned" if allocator_is_tuned() else "default"
    subject = Subject(case)
    running: dict[str, Running] = {}
    for contender in CONTENDERS:
        if contender.name not in left_out and allocator in contender.allocators:
            started = contender.start(Start(subject, rounds, tiles, running))
            if started is not None:
                running[contender.name] = started
    times: dict[str, list[float]] = {name: [] for name in running}
    gemm = 0.0
    for turn in range(rounds):
        gemm = max(gemm, gemm_gflops())
        names = list(running)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # none always comes first
            times[name].append(running[name].round(turn))
    row: dict[str, Any] = {
        "model": case.name,
        "size": case.size,
        "allocator": allocator,
        "commit": commit(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "positions": subject.grid.count,
        "ms": {name: statistics.median(values) + running[name].charge for name, values in times.items()},
        "details": {name: {"rounds_ms": times[name]} | running[name].facts() for name in running},
        "gemm_gflops": gemm,
        "capture_s": subject.captured_in[1],
        "wanted": wanted(case.name, case.size),
    }
    return row | ratios(row) | arithmetic(subject, row)


def ratios(row: dict[str, Any]) -> dict[str, Any]:
    """The speed-ups that the issues have aims for, where both sides took part."""
    ms: dict[str, float] = row["ms"]
    stock = [ms[contender.name] for contender in CONTENDERS if contender.side == "stock" and contender.name in ms]
    found: dict[str, float] = {}
    if "exact" in ms:
        found |= {f"exact/{name}": ms[name] / ms["exact"] for name in ms if name != "exact"}
        if stock:
            found["exact/fastest"] = min(stock) / ms["exact"]
    if "tolerance" in ms and stock:
        again = ms.get("tolerance_again", ms["tolerance"])
        found |= {"tolerance/fastest": min(stock) / ms["tolerance"], "tolerance_again/fastest": min(stock) / again}
    return {"speedups": found}


def arithmetic(subject: Subject, row: dict[str, Any]) -> dict[str, Any]:
    """What the arithmetic allows, and how near to it the exact contender comes.

    `arithmetic`: full inference's multiply-adds over the measured tiles'; `bound`: over those of tight fields. `gflops`: the
    tiles' multiply-adds as direct convolutions make them, over the time that was needed: Winograd makes fewer, so that the
    share of the GEMM rate may exceed 1. `bound_share`: the time of the bound's multiply-adds at the GEMM rate, over the time.
    """
    graph = theory.incremental_graph(subject.captured, subject.grid)
    full, tight = theory.full(graph), theory.tight(graph, subject.grid)
    found = {"full_multiply_adds": full, "tight_multiply_adds": tight, "bound": full / tight}
    if "exact" in row["ms"]:
        mine, seconds = row["details"]["exact"]["multiply_adds"], row["ms"]["exact"] / 1e3
        gflops = 2e-9 * mine / seconds
        found |= {"arithmetic": full / mine, "gflops": gflops, "gemm_share": gflops / row["gemm_gflops"]}
        found["bound_share"] = 2e-9 * tight / row["gemm_gflops"] / seconds
    return found


def print_peak(case: Case, side: str) -> None:
    """The megabytes at the peak of this process, which does one thing: naive at batch 32, or an exact map's first tiles."""
    from krypton.executor import execute
    from krypton.planner.optimizer import plan_query

    torch.set_grad_enabled(False)
    subject = Subject(case)
    if side == "naive":
        subject.model.to(memory_format=torch.channels_last)(subject.images(32, torch.channels_last))
    else:
        plan = plan_query(subject.captured, subject.grid)
        assert plan.tensor is not None
        tiles = even(plan.tensor.tiling.tiles(plan.occlusions), 24)
        list(execute(plan, subject.image, subject.fill, weights=subject.captured.weights, tiles=tiles))
    # not getrusage: its peak is inherited from the process that started this one
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")))


def in_a_process(case: Case, allocator: Allocator, *options: str) -> str:
    """What this program prints when it runs one case under one allocator."""
    command = [sys.executable, "-m", "benchmarks.exact", "--only", str(case), *options]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment(allocator))
    return run.stdout


def run_case(case: Case, allocator: Allocator, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row, measured in a process of its own."""
    with TemporaryDirectory() as folder:
        result = Path(folder, "row.json")
        options = ["--rounds", arguments.rounds, "--tiles", arguments.tiles, "--row", result, "--without", *arguments.without]
        in_a_process(case, allocator, *map(str, options))
        row: dict[str, Any] = json.loads(result.read_text())
    if not arguments.no_memory and allocator == "tuned":
        row |= {
            f"peak_mb_{side}": int(in_a_process(case, allocator, "--peak", side).split()[-1]) for side in ("naive", "exact")
        }
    return row


def saved(path: Path, machine: dict[str, object]) -> list[dict[str, Any]]:
    """Rows of earlier runs on the same machine."""
    if not path.exists():
        return []
    data = json.loads(path.read_text())
    return [row for row in data["results"] if "ms" in row] if data["machine"] == machine else []


def save(path: Path, machine: dict[str, object], rows: list[dict[str, Any]]) -> None:
    write_json(path, {"machine": machine, "command": "python -m benchmarks.exact", "results": rows})


def key(row: dict[str, Any]) -> tuple[int, int, str]:
    """Rows in the order of the cases, the tuned allocator's first."""
    cases = list(WANTED)
    case = row["model"], row["size"]
    return row["allocator"] == "default", cases.index(case) if case in cases else len(cases), str(case)


def arguments_of(parser: argparse.ArgumentParser) -> argparse.Namespace:
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--only", nargs="*", help="cases as model@size (default: all)")
    parser.add_argument("--allocator", choices=("tuned", "default", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=6, help="tiles per round")
    parser.add_argument("--without", nargs="*", default=[], choices=names, metavar="CONTENDER", help=", ".join(names))
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="where to write the JSON")
    parser.add_argument("--peak", choices=("naive", "exact"), help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None))
    cases = [Case.parse(text) for text in arguments.only] if arguments.only else [Case(*case) for case in WANTED]
    if arguments.peak:
        print_peak(cases[0], arguments.peak)
        return
    if arguments.row:
        row = measure(cases[0], arguments.rounds, arguments.tiles, set(arguments.without))
        arguments.row.write_text(json.dumps(row))
        return
    allocators: list[Allocator] = ["tuned", "default"] if arguments.allocator == "both" else [arguments.allocator]
    # the default allocator's table is there for the comparison with Captum
    todo = [
        (case, allocator)
        for allocator in allocators
        for case in cases
        if allocator == "tuned" or arguments.only or "captum" in wanted(case.name, case.size)
    ]
    console, machine, failed = Console(width=160), describe(), []
    del machine["allocator"]  # each row has its own
    rows = saved(arguments.out, machine)
    for case, allocator in todo:
        console.print(f"[dim]{case}, {allocator} allocator[/dim]", highlight=False)
        try:
            row = run_case(case, allocator, arguments)
        except subprocess.CalledProcessError as error:
            failed.append(f"{case}, {allocator} allocator: exit status {error.returncode}")
            continue
        rows = sorted([r for r in rows if key(r) != key(row)] + [row], key=key)
        save(arguments.out, machine, rows)
    for table in tables.of(rows):
        console.print(tables.rich_table(table))
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
