"""What a benchmark ran on, for its committed output; and the allocator settings that both sides run under."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import torch

TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""glibc otherwise maps and unmaps every large block, which makes naive inference up to 1.8 times slower than it is."""


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


def allocator_is_tuned() -> bool:
    return all(os.environ.get(name) == value for name, value in TUNED.items())


def with_tuned_allocator() -> None:
    """Start this program again under the tuned allocator, unless it runs under it already."""
    if not allocator_is_tuned():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | TUNED)
