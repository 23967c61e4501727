"""native.cpp, compiled once by the system's C++ compiler and kept in the user's cache; without a compiler, None.

The library is known by the hash of its source, compiler and processor flags. Calls pass one array of integers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

NATIVE_FUNCTIONS = {
    "relu": 1,
    "clamp": 2,
    "silu": 3,
    "hardswish": 4,
    "hardsigmoid": 5,
    "sigmoid": 6,
    "tanh": 7,
    "gelu": 8,
    "gelu_tanh": 9,
    "leaky_relu": 10,
}
MOST_TERMS = 8

_SOURCE = Path(__file__).with_name("native.cpp")
# fast-math lets the compiler use vector versions of exp, tanh and erf; linking without it keeps denormals as they are
_COMPILE = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-std=c++17", "-c")
_LINK = ("-shared", "-fopenmp", "-lm")


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$KRYPTON_CACHE`, or krypton/ in the user's cache."""
    if configured := os.environ.get("KRYPTON_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "krypton"


def compiler() -> str | None:
    """The C++ compiler used: `$CXX`, or the first found of g++, clang++, c++."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    return None


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be made: then the reference kernels do the work."""
    if os.environ.get("KRYPTON_NO_COMPILER"):
        return None
    cxx = compiler()
    if cxx is None or platform.system() != "Linux":
        return None
    try:
        return _load(_compiled(cxx))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(cxx: str) -> Path:
    flags = _processor()
    key = hashlib.sha256("\0".join((_SOURCE.read_text(), cxx, *_COMPILE, *_LINK, flags)).encode()).hexdigest()[:20]
    target = cache_folder() / f"native-{key}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unlinked, linked = Path(folder) / "native.o", Path(folder) / "native.so"
        for command in ((cxx, *_COMPILE, str(_SOURCE), "-o", str(unlinked)), (cxx, str(unlinked), *_LINK, "-o", str(linked))):
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        os.replace(linked, target)
    return target


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    integers = ctypes.POINTER(ctypes.c_int64)
    loaded.krypton_combine.argtypes = [integers, ctypes.c_double, ctypes.c_double]
    loaded.krypton_max_pool.argtypes = [integers]
    loaded.krypton_avg_pool.argtypes = [integers]
    for name in ("krypton_combine", "krypton_max_pool", "krypton_avg_pool"):
        getattr(loaded, name).restype = None
    return loaded


def integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of batch, row and pixel; the channels of what kernels read and write are innermost."""
    batch, channel, row, pixel = tensor.stride()
    assert channel == 1 or tensor.shape[1] == 1, "kernels want channels innermost"
    assert tensor.dtype == torch.float32, "kernels want single precision"
    return batch, row, pixel
