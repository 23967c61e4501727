"""Exact queries against naive inference, in one run and interleaved: `python -m benchmarks.exact`.

Both sides run under the same allocator settings, on the same photo, patch 16, stride 4. Naive is eager channels_last at the
best batch of 8, 16, 32, 64, and torch.compile with freezing at the same batch. Exact runs on tiles drawn evenly from the whole
map, so that borders weigh as in the whole map; its base views and packed weights are charged to every position's time as in a
whole map. Medians over rounds; ratios are what carries over to other machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.machine import describe, with_tuned_allocator

WANTED = {
    ("vgg16", 224): 6.5,
    ("resnet18", 224): 2.6,
    ("resnet50", 224): 2.1,
    ("inception_v3", 299): 1.6,
    ("densenet121", 224): 2.4,
    ("mobilenet_v2", 224): 3.0,
    ("resnet18", 1024): 20.0,
}
"""The speed-ups over eager channels_last that this benchmark is to show."""

BATCHES = (8, 16, 32, 64)
PATCH, STRIDE = (16, 16), (4, 4)


@dataclass(frozen=True)
class Case:
    """One model at one input size."""

    name: str
    size: int

    @property
    def wanted(self) -> float | None:
        return WANTED.get((self.name, self.size))


def build(case: Case) -> nn.Module:
    """A torchvision model with random weights and sane activations: batch norms are calibrated on the photo."""
    import torchvision

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torchvision.models.get_model(case.name, weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None
        model.train()
        with torch.no_grad():
            x = photo(min(case.size, 299))
            model(torch.stack([x, x.flip(2), x.flip(1), x + 0.3 * torch.randn_like(x)]))
    return model.eval()


def photo(size: int) -> Tensor:
    """A real photo (3, size, size), normalised as ImageNet models want it."""
    from skimage import data, transform

    pixels = torch.from_numpy(transform.resize(data.astronaut(), (size, size), anti_aliasing=True)).float().permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def clocked(work: Callable[[], object]) -> float:
    return timed(work)[1]


def measure(case: Case, rounds: int, tiles_per_round: int, compiled: bool) -> dict[str, Any]:
    """All contenders of one case, as JSON data; times in milliseconds per position."""
    from krypton.executor import execute
    from krypton.ir.occlusions import Grid
    from krypton.planner.capture import capture
    from krypton.planner.explain import summarise
    from krypton.planner.optimizer import plan_query

    torch.set_grad_enabled(False)
    model, image = build(case), photo(case.size)
    fill = torch.zeros_like(image)
    shape = (3, case.size, case.size)
    captured, captured_in = timed(lambda: capture(model, shape))
    plan, planned_in = timed(lambda: plan_query(captured, Grid(shape[1:], PATCH, STRIDE), model=case.name))
    assert plan.tensor is not None
    all_tiles = plan.tensor.tiling.tiles(plan.occlusions)
    chosen = _even(all_tiles, rounds * tiles_per_round)
    eager = model.to(memory_format=torch.channels_last)

    def images(count: int) -> Tensor:
        return image.expand(count, -1, -1, -1).contiguous(memory_format=torch.channels_last)

    largest = 64 if case.size <= 320 else 16
    batches = [b for b in BATCHES if b <= largest]
    tried = {b: min(clocked(lambda b=b: eager(images(b))) for _ in range(2)) / b * 1e3 for b in batches}  # type: ignore[misc]
    best = min(tried, key=tried.__getitem__)
    batch = images(best)
    contenders: dict[str, Callable[[], object]] = {"naive": lambda: eager(batch)}
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        fast = torch.compile(eager)
        fast(batch)
        contenders["compiled"] = lambda: fast(batch)
    times: dict[str, list[float]] = {name: [] for name in [*contenders, "exact", "setup"]}
    _, cold = timed(lambda: list(execute(plan, image, fill, weights=captured.weights, tiles=chosen)))
    total = 0.0
    for turn in range(rounds):
        for name, run in contenders.items():
            run()
            times[name].append(clocked(run) / best * 1e3)
        some = chosen[turn::rounds]
        run_of_tiles, setup = timed(lambda some=some: execute(plan, image, fill, weights=captured.weights, tiles=some))
        seconds = clocked(lambda run=run_of_tiles: list(run))
        times["setup"].append(setup * 1e3)
        times["exact"].append(seconds / sum(len(tile.indices) for tile in some) * 1e3)
        total += seconds
    medians = {name: statistics.median(values) for name, values in times.items()}
    # what happens once per map (base views, weights laid out) is charged to all its positions
    once = medians["setup"] + max(cold - total, 0.0) * 1e3
    exact = medians["exact"] + once / plan.occlusions.count
    positions = sum(len(tile.indices) for tile in chosen)
    summary = summarise(plan)
    fastest = min(medians["naive"], medians.get("compiled", float("inf")))
    return {
        "model": case.name,
        "size": case.size,
        "positions": plan.occlusions.count,
        "measured_positions": positions,
        "naive_ms": medians["naive"],
        "naive_batch": best,
        "naive_by_batch_ms": tried,
        "compiled_ms": medians.get("compiled"),
        "exact_ms": exact,
        "speedup": medians["naive"] / exact,
        "speedup_over_fastest": fastest / exact,
        "arithmetic": summary.arithmetic if summary else None,
        "wanted": case.wanted,
        "capture_s": captured_in,
        "plan_s": planned_in,
        "once_ms": once,
        "rounds_ms": times,
    }


def _even(items: list[Any], count: int) -> list[Any]:
    """So many items, evenly drawn from the whole list."""
    count = min(count, len(items))
    return [items[int((i + 0.5) * len(items) / count)] for i in range(count)]


def peak_memory(case: Case, side: str) -> int:
    """Megabytes at the peak of a process that does one thing: naive at batch 32, or an exact map's first tiles."""
    command = [sys.executable, "-m", "benchmarks.exact", "--peak", side, "--only", f"{case.name}@{case.size}"]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _print_peak(case: Case, side: str) -> None:
    from krypton.executor import execute
    from krypton.ir.occlusions import Grid
    from krypton.planner.capture import capture
    from krypton.planner.optimizer import plan_query

    model, image = build(case), photo(case.size)
    with torch.no_grad():
        if side == "naive":
            model = model.to(memory_format=torch.channels_last)
            model(image.expand(32, -1, -1, -1).contiguous(memory_format=torch.channels_last))
        else:
            captured = capture(model, (3, case.size, case.size))
            plan = plan_query(captured, Grid((case.size, case.size), PATCH, STRIDE))
            assert plan.tensor is not None
            tiles = _even(plan.tensor.tiling.tiles(plan.occlusions), 24)
            list(execute(plan, image, torch.zeros_like(image), weights=captured.weights, tiles=tiles))
    # not getrusage: its peak is inherited from the process that started this one
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")))


def show(results: list[dict[str, Any]], console: Console) -> None:
    """The table that docs/benchmarks.md shows."""
    table = Table(title="patch 16, stride 4; milliseconds per position", title_justify="left")
    headings = ("model", "size", "naive", "compiled", "exact", "speed-up", "wanted", "arithmetic", "peak MB naive / exact")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for r in results:
        wanted = "-" if r["wanted"] is None else f"≥ {r['wanted']:g}×"
        compiled = "-" if r["compiled_ms"] is None else f"{r['compiled_ms']:.2f}"
        peaks = f"{r['peak_mb_naive']} / {r['peak_mb_exact']}" if "peak_mb_naive" in r else "-"
        table.add_row(
            r["model"], str(r["size"]), f"{r['naive_ms']:.2f}", compiled, f"{r['exact_ms']:.2f}",
            f"{r['speedup']:.2f}×", wanted, f"{r['arithmetic']:.2f}×", peaks,
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", help="cases as model@size (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=6, help="tiles per round")
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out (it takes minutes)")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--out", type=Path, help="where to write the JSON")
    parser.add_argument("--peak", choices=("naive", "exact"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with_tuned_allocator()
    cases = [Case(*key) for key in WANTED]
    if arguments.only:
        cases = [Case(name, int(size or 224)) for name, _, size in (text.partition("@") for text in arguments.only)]
    if arguments.peak:
        _print_peak(cases[0], arguments.peak)
        return
    console, results = Console(width=120), []
    for case in cases:
        console.print(f"[dim]{case.name} {case.size}²[/dim]", highlight=False)
        result = measure(case, arguments.rounds, arguments.tiles, not arguments.no_compiled)
        if not arguments.no_memory:
            result |= {f"peak_mb_{side}": peak_memory(case, side) for side in ("naive", "exact")}
        results.append(result)
        if arguments.out:
            data = {"machine": describe(), "command": "python -m benchmarks.exact", "results": results}
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(data, indent=1) + "\n")
    show(results, console)


if __name__ == "__main__":
    main()
