"""What a benchmark ran on, for its committed output: the machine, its GEMM rate, the commit; and the allocator settings."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from benchmarks.clock import clocked

Allocator = Literal["tuned", "default"]

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""glibc otherwise maps and unmaps every large block, which makes naive inference up to 1.8 times slower than it is."""

GEMMS = ((1024, 1024, 1024), (2048, 512, 512), (2048, 512, 2048))
"""(rows, columns, inner) of the products by which the machine is measured: large, and as convolutions make them."""


def describe() -> dict[str, object]:
    """Processor, memory, versions and allocator, as JSON data."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    flags = next((line for line in cpu.splitlines() if line.startswith("flags")), "")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f" {f}" in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "allocator": "tuned" if allocator_is_tuned() else "default",
    }


def commit() -> str:
    """The commit that ran, marked where files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return run.stdout.strip()


def gemm_gflops(repeats: int = 4) -> float:
    """The best float32 rate seen just now, in GFLOP/s, of `torch.mm` (MKL) and of the same product as a 1×1 convolution
    (oneDNN): what arithmetic can be had for."""
    best = 0.0
    for rows, columns, inner in GEMMS:
        a, b, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
        x = a.view(rows // 64, 8, 8, inner).permute(0, 3, 1, 2)
        weight = b.t()[:, :, None, None].contiguous()
        runs = lambda: torch.mm(a, b, out=out), lambda: F.conv2d(x, weight)  # noqa: B023
        for run in runs * repeats:
            best = max(best, 2e-9 * rows * columns * inner / clocked(run))
    return best


def allocator_is_tuned() -> bool:
    return all(os.environ.get(name) == value for name, value in TUNED.items())


def environment(allocator: Allocator) -> Mapping[str, str]:
    """The environment of a process under one allocator setting, whatever this one runs under."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return plain | TUNED if allocator == "tuned" else plain


def with_tuned_allocator() -> None:
    """Start this program again under the tuned allocator, unless it runs under it already."""
    if not allocator_is_tuned():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(environment("tuned")))
