"""What a user's very first query takes, compiling included: `python -m benchmarks.first`.

Every run is a process of its own: session, capture, plan and a small map, with the compiled kernels in the cache (*warm*), with
an empty cache (*cold*: the compiler runs as well), and without a compiler (*without*: kernels of PyTorch). Imports and building
the model are not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.cases import Case, build, photo
from benchmarks.machine import describe, with_tuned_allocator
from benchmarks.record import write_json

CASES = (("mobilenet_v2", 32), ("resnet18", 32), ("resnet18", 16))
"""Models at 224² and strides: 49 and 196 positions."""


def seconds(model: str, stride: int, environment: dict[str, str]) -> float:
    """One process."""
    command = [sys.executable, "-m", "benchmarks.first", "--once", model, "--stride", str(stride)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment)
    return float(ran.stdout.split()[-1])


def once(name: str, stride: int) -> None:
    import krypton
    import krypton.session  # what the clock is not to count: imports

    model = build(Case(name, 224))
    started = time.perf_counter()
    with krypton.connect() as con:
        con.register_model("net", model, input_shape=(3, 224, 224))
        con.sql(f"EXPLAIN OCCLUSION OF $image USING MODEL net STRIDE {stride}", params={"image": photo(224)}).run()
        print(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    parser.add_argument("--stride", type=int, default=32, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        torch.set_grad_enabled(False)
        once(arguments.once, arguments.stride)
        return
    with_tuned_allocator()
    results = []
    for model, stride in CASES:
        spent: dict[str, list[float]] = {"cold": [], "warm": [], "without": []}
        for _ in range(arguments.rounds):
            with TemporaryDirectory() as folder:
                for side in ("cold", "warm"):
                    spent[side].append(seconds(model, stride, {"KRYPTON_CACHE": folder}))
            spent["without"].append(seconds(model, stride, {"KRYPTON_NO_COMPILER": "1"}))
        medians = {side: statistics.median(times) for side, times in spent.items()}
        results.append({"model": model, "stride": stride, **{f"{side}_s": value for side, value in medians.items()}})
        words = ", ".join(f"{value:.2f} s {side}" for side, value in medians.items())
        Console().print(f"{model}, stride {stride}: {words}")
    if arguments.out:
        write_json(arguments.out, {"machine": describe(), "results": results})


if __name__ == "__main__":
    main()
