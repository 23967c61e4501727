"""The C++ kernels of cpp/, compiled once by the system's compiler and kept in the user's cache; without a compiler, None.

The library is known by the hash of its sources, compiler and processor flags. Calls pass one array of integers; those that
describe how a delta rule or an operator on whole maps ends (cpp/common.h) are made here.
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
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from krypton.cache import cache_folder
from krypton.errors import PlanError, unknown
from krypton.ir.delta import Box, Delta
from krypton.ir.graph import Function, Node

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
ENDING_INTEGERS = 22 + 9 * MOST_TERMS

_SOURCES = sorted(Path(__file__).with_name("cpp").glob("*.cpp"))
_HEADERS = sorted(Path(__file__).with_name("cpp").glob("*.h"))
# fast-math lets the compiler use vector versions of exp, tanh and erf; linking without it keeps denormals as they are
_COMPILE = ("-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-std=c++17", "-c")
_LINK = ("-shared", "-fopenmp", "-lm")


def compiler() -> str | None:
    """The C++ compiler used: `$CXX`, or the first found of g++, clang++, c++."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    return None


def _usable_compiler() -> str | None:
    return None if os.environ.get("KRYPTON_NO_COMPILER") or platform.system() != "Linux" else compiler()


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they cannot be made: then the reference kernels do the work."""
    cxx = _usable_compiler()
    if cxx is None:
        return None
    try:
        return _load(_compiled(cxx))
    except (OSError, subprocess.SubprocessError):
        return None


class Compiling:
    """When kernels that were never compiled here are: at once as soon as anybody asks for them, unless that is postponed."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._began = 0.0
        self._postponed = False

    def postpone(self) -> None:
        """From now on nobody waits for kernels that are still to be compiled: plans do without."""
        if self._thread is not None or library.cache_info().currsize:
            return
        cxx = _usable_compiler()
        self._postponed = cxx is not None and not _target(cxx).exists()

    @property
    def pending(self) -> bool:
        """Is there anything to compile, now or later?"""
        return self._postponed or (self._thread is not None and self._thread.is_alive())

    @property
    def seconds(self) -> float:
        """Since the compiler began."""
        return 0.0 if self._thread is None else time.perf_counter() - self._began

    def start(self) -> None:
        """What was postponed, beside whatever else happens."""
        if self._postponed:
            self._thread, self._began = threading.Thread(target=library, name="krypton-compiler"), time.perf_counter()
            self._thread.start()
            self._postponed = False

    def finish(self) -> None:
        """The same, and wait for it."""
        self.start()
        if self._thread is not None:
            self._thread.join()


compiling = Compiling()


def _target(cxx: str) -> Path:
    texts = [path.read_text() for path in (*_SOURCES, *_HEADERS)]
    key = hashlib.sha256("\0".join((*texts, cxx, *_COMPILE, *_LINK, _processor())).encode()).hexdigest()[:20]
    return cache_folder() / f"native-{key}.so"


def _compiled(cxx: str) -> Path:
    target = _target(cxx)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, ThreadPoolExecutor() as pool:
        objects = [Path(folder) / f"{source.stem}.o" for source in _SOURCES]
        commands = [(cxx, *_COMPILE, str(s), "-o", str(o)) for s, o in zip(_SOURCES, objects, strict=True)]
        list(pool.map(_run, commands))
        linked = Path(folder) / "native.so"
        _run((cxx, *map(str, objects), *_LINK, "-o", str(linked)))
        os.replace(linked, target)
    return target


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    integers, doubles = ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_double)
    for name in ("combine", "convolution", "winograd", "depthwise"):
        getattr(loaded, f"krypton_{name}").argtypes = [integers, doubles]
    for name in ("max_pool", "avg_pool", "pack", "winograd_pack", "winograd_points", "chain"):
        getattr(loaded, f"krypton_{name}").argtypes = [integers]
    for name in ("combine", "convolution", "winograd", "depthwise", "max_pool", "avg_pool", "pack", "winograd_pack", "chain"):
        getattr(loaded, f"krypton_{name}").restype = None
    loaded.krypton_has_pairs.restype = loaded.krypton_winograd_points.restype = ctypes.c_int64
    return loaded


def loaded() -> ctypes.CDLL:
    """The compiled kernels; PlanError where a plan wants them and they cannot be made."""
    found = library()
    if found is None:
        raise PlanError("the plan wants compiled kernels, which need a C++ compiler here: plan the query again on this machine")
    return found


def can_end(node: Node, device: torch.device) -> bool:
    """Are there compiled kernels here, and can they run the node's epilogue?"""
    if device.type != "cpu" or compiling.pending or library() is None:
        return False
    if node.epilogue is None:
        return True
    return len(node.epilogue.terms) <= MOST_TERMS and (node.function is None or node.function.name in NATIVE_FUNCTIONS)


def fitting(condition: bool) -> None:
    """Compiled code trusts what it is given, so a plan whose parts contradict each other must end here."""
    if not condition:
        raise PlanError("the plan's nodes and weights do not fit together: it is damaged, plan the query again")


def integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def doubles(*values: float) -> ctypes.Array[ctypes.c_double]:
    return (ctypes.c_double * len(values))(*values)


def strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of batch, row and pixel; the channels of what kernels read and write are innermost."""
    batch, channel, row, pixel = tensor.stride()
    assert channel == 1 or tensor.shape[1] == 1, "kernels want channels innermost"
    assert tensor.dtype == torch.float32, "kernels want single precision"
    return batch, row, pixel


Terms = Sequence[tuple[Delta, Tensor | None]]
"""Summands of an ending: deltas, each with a scale (C,) or None."""


def number_of(function: Function | None) -> int:
    """The number of a function in cpp/ending.cpp, 0 for none."""
    if function and function.name not in NATIVE_FUNCTIONS:
        raise PlanError(unknown("function", function.name, NATIVE_FUNCTIONS))
    return NATIVE_FUNCTIONS[function.name] if function else 0


def parameters_of(function: Function | None) -> tuple[float, float]:
    first, second, *_ = (*(function.parameters if function else ()), 0.0, 0.0)
    return first, second


class Ending:
    """How a node ends. Its delta rule: f(base + own·sum + Σ scale·Δ) − f(base) on its field, zero elsewhere in the target.
    On whole maps, absolute: f(shifts + own·sum + Σ scale·x)."""

    def __init__(self, function: Function | None) -> None:
        self._number = number_of(function)
        self.parameters = doubles(*parameters_of(function), 0.0, 0.0)

    def describe(self, target: Delta, field: Box, own: Tensor | None, terms: Terms, base: Tensor | None) -> list[int]:
        """The integers of cpp/common.h's Ending. `base` is the view (1, C, h, w) on the field, None for
        deltas without a function; shifts (C,) of the channels make the ending absolute."""
        data, top, left = target.data, target.top, target.left
        batch, channels, height, width = data.shape
        rows, columns = field
        fitting(target.rows.contains(rows) and target.columns.contains(columns) and len(terms) <= MOST_TERMS)
        absolute = base is not None and base.dim() == 1
        fitting(absolute or (base is None) == (self._number == 0))
        if base is not None and absolute:
            fitting(per_channel(base, channels))
            base = base.view(1, channels, 1, 1).expand(1, -1, rows.size, columns.size)
        fitting(base is None or base.shape == (1, channels, rows.size, columns.size))
        fitting(per_channel(own, channels))
        integers = [
            data.data_ptr(), batch, height, width, channels, *strides(data),
            rows.start - top, rows.stop - top, columns.start - left, columns.stop - left,
            *((base.data_ptr(), *strides(base)[1:]) if base is not None else (0, 0, 0)), self._number, len(terms),
            0 if own is None else own.data_ptr(), int(absolute), rows.start, columns.start, fields_of(target),
        ]  # fmt: skip
        for delta, scale in terms:
            (r0, r1), (c0, c1) = delta.rows, delta.columns
            fitting(delta.data.shape[:2] == data.shape[:2] and per_channel(scale, channels))
            integers += [
                delta.data.data_ptr(), *strides(delta.data), r0 - top, r1 - top, c0 - left, c1 - left,
                0 if scale is None else scale.data_ptr(),
            ]  # fmt: skip
        return integers + [0] * (ENDING_INTEGERS - len(integers))


def per_channel(scale: Tensor | None, channels: int) -> bool:
    """Is this a scale (C,) that compiled code can read, or none?"""
    return scale is None or (scale.shape == (channels,) and scale.dtype == torch.float32 and scale.is_contiguous())


def fields_of(delta: Delta) -> int:
    """Where the occlusions' own fields are, 0 where they are not known."""
    fields = delta.fields
    if fields is None:
        return 0
    fitting(fields.shape == (delta.data.shape[0], 4) and fields.dtype == torch.int64 and fields.is_contiguous())
    return fields.data_ptr()


def source(delta: Delta) -> list[int]:
    """The integers of cpp/common.h's Source."""
    return [delta.data.data_ptr(), *strides(delta.data), *delta.rows, *delta.columns]
