"""How long capture and planning take, cold and from a catalog: `python -m benchmarks.capture`.

Each side is a process of its own, as for a user who comes back the next day; importing PyTorch and building the model are not
counted, capture, its check and planning are.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from benchmarks.machine import describe, with_tuned_allocator
from benchmarks.record import write_json

QUERY = "EXPLAIN OCCLUSION OF $image USING MODEL net"


def seconds(catalog: Path, name: str) -> float:
    """One process: a session over the catalog, the model registered, the query planned."""
    command = [sys.executable, "-m", "benchmarks.capture", "--once", str(catalog), "--model", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def once(catalog: Path, name: str) -> None:
    import torchvision

    import krypton
    import krypton.session  # what the clock is not to count: imports

    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    image = torch.zeros(3, 224, 224)
    started = time.perf_counter()
    with krypton.connect(catalog) as con:
        con.register_model("net", model, input_shape=(3, 224, 224))
        con.sql(QUERY, params={"image": image}).plan()
        print(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        once(arguments.once, arguments.model)
        return
    with_tuned_allocator()
    cold, warm = [], []
    for _ in range(arguments.rounds):
        with TemporaryDirectory() as folder:
            catalog = Path(folder, "work.krypton")
            cold.append(seconds(catalog, arguments.model))
            warm.append(seconds(catalog, arguments.model))
    result = {"model": arguments.model, "cold_s": statistics.median(cold), "catalog_s": statistics.median(warm)}
    Console().print(f"{arguments.model}: {result['cold_s']:.2f} s cold, {result['catalog_s']:.2f} s from the catalog")
    if arguments.out:
        write_json(arguments.out, {"machine": describe(), "result": result})


if __name__ == "__main__":
    main()
