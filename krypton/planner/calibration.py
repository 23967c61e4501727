"""CALIBRATE: measure a device. Synthetic convolutions of usual shapes by every kernel that can, memory, and operator starts.

With a model also its own convolutions, on the boxes of a usual query.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval
from krypton.ir.graph import Epilogue, Function, Node, Term
from krypton.ir.plan import QueryPlan
from krypton.kernels import Kernel, able, find
from krypton.operators.base import channels_last, operator_of
from krypton.planner.cost import matrix_shape
from krypton.planner.profile import DeviceProfile, KernelRate

Progress = Callable[[int, int], object]

BATCH = 16
_ROUNDS = 3
_CHANNELS, _OUTPUTS, _SIDES = (32, 128, 512), (32, 128, 512), (7, 14, 28)
_TAPS = ((1, 1), (3, 3), (1, 7))
_MOST = 6e9  # multiply-adds of one measurement: beyond it rates do not change


def calibrate(device: torch.device, models: Iterable[QueryPlan] = (), progress: Progress | None = None) -> DeviceProfile:
    """A profile of a device, in well under a minute. `models` are plans whose convolutions are measured as well."""
    with torch.no_grad():
        work = list(_usual()) + [case for plan in models for case in _of_plan(plan)]
        rates: list[KernelRate] = []
        for done, (node, side) in enumerate(work):
            if progress:
                progress(done, len(work))
            rates += measure(node, side, device)
        if progress:
            progress(len(work), len(work))
        best = max((rate.per_ms for rate in rates if rate.kernel in ("onednn", "reference")), default=9.5e7)
        plain = DeviceProfile(
            best * 0.9, _memory(device), _start(device), _cache(device), (), device_name(device), time.strftime("%Y-%m-%d")
        )
        return plain.learn(rates)


def measure(node: Node, side: Interval | int, device: torch.device) -> list[KernelRate]:
    """The rates of all kernels that can run a convolution, on an output box this long and wide, interleaved."""
    size = side if isinstance(side, int) else side.size
    runs = {kernel.name: _prepared(kernel, node, size) for kernel in able("conv", node, device, exact=False)}
    if len(runs) > 1:
        runs.pop("reference", None)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(_ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:  # the first is for caches
                spent[name].append((time.perf_counter() - started) * 1e3)
    shape = matrix_shape(node, _box(size), BATCH)
    found = []
    for name, times in spent.items():
        work = (find("conv", name).work or operator_of(node).multiply_adds)(node, size, size) * BATCH
        found.append(KernelRate(name, shape, float(round(work / sorted(times)[len(times) // 2]))))
    return found


def _usual() -> Iterator[tuple[Node, int]]:
    for channels, outputs, side, taps in product(_CHANNELS, _OUTPUTS, _SIDES, _TAPS):
        node = _convolution(channels, outputs, taps)
        if operator_of(node).multiply_adds(node, side, side) * BATCH <= _MOST:
            yield node, side
    for channels, side in product((64, 256, 1024), _SIDES):
        yield _convolution(channels, channels, (3, 3), groups=channels), side


def _of_plan(plan: QueryPlan) -> Iterator[tuple[Node, int]]:
    """The convolutions of a plan that differ, with the sides of their average boxes."""
    seen = set()
    for node in plan.tensor.graph if plan.tensor else ():
        cost = plan.tensor.costs.get(node.id) if plan.tensor else None
        if node.op != "conv" or cost is None or not cost.field or 0 in cost.field:
            continue
        side = round((cost.field[0] * cost.field[1]) ** 0.5)
        key = (node.shape[0], tuple((k, str(v)) for k, v in sorted(node.attrs.items())), side)
        if key not in seen:
            seen.add(key)
            yield replace(node, epilogue=_RELU, weights={"weight": "w"}, kernel=""), side


_RELU = Epilogue((Term(-1),), Function("relu"))


def _convolution(channels: int, outputs: int, taps: tuple[int, int], groups: int = 1) -> Node:
    pads = [(tap - 1) // 2 for tap in taps]
    attrs = {
        "kernel": list(taps), "stride": [1, 1], "dilation": [1, 1], "padding": [pads[0], pads[0], pads[1], pads[1]],
        "groups": groups, "in_channels": channels,
    }  # fmt: skip
    return Node(1, "conv", (0,), (outputs, 64, 64), attrs, {"weight": "w"}, epilogue=_RELU, mode="delta")


def _box(size: int) -> Box:
    return Box(Interval(0, size), Interval(0, size))


def _prepared(kernel: Kernel, node: Node, size: int) -> Callable[[], object]:
    """A call of a kernel, with everything it needs."""
    a, generator = node.attrs, torch.Generator().manual_seed(0)
    weight = torch.randn(node.shape[0], a["in_channels"] // a["groups"], *a["kernel"], generator=generator)
    # all that the outputs read
    height, width = ((size - 1) * a["stride"][i] + (a["kernel"][i] - 1) * a["dilation"][i] + 1 for i in (0, 1))
    run = kernel.build(node, lambda reference: weight)
    top, left = a["padding"][0], a["padding"][2]
    x = channels_last(_rectified(a["in_channels"], height, width, generator))
    if not kernel.fused:
        return lambda: run(x, (0, 0))
    field = _box(size)
    source = Delta(x, -top, -left, Box(Interval(-top, height - top), Interval(-left, width - left)))
    target = Delta(channels_last(torch.empty(BATCH, node.shape[0], size, size)), 0, 0, field)
    base = channels_last(torch.randn(1, node.shape[0], size, size, generator=generator)) if node.function else None
    return lambda: run(target, field, source, None, [], base)


def _rectified(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Deltas (BATCH, C, h, w) as a ReLU leaves them: two fifths are zero in all occlusions, a little more in each."""
    in_all = torch.rand(channels, height, width, generator=generator) < 0.4
    in_each = torch.rand(BATCH, channels, height, width, generator=generator) < 0.1
    return torch.randn(BATCH, channels, height, width, generator=generator).masked_fill(in_all | in_each, 0.0)


def _memory(device: torch.device) -> float:
    """Bytes read or written per millisecond, by a copy that no cache holds."""
    source = torch.ones(16 * 2**20, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        times.append((time.perf_counter() - started) * 1e3)
    return 2 * source.numel() * 4 / min(times)


def _start(device: torch.device) -> float:
    """Milliseconds that an operator takes which has next to nothing to compute, with what the executor does around it."""
    node = _convolution(16, 16, (1, 1))
    run = _prepared(able("conv", node, device)[0], node, 1)
    started = time.perf_counter()
    for _ in range(200):
        run()
    return 2 * (time.perf_counter() - started) * 1e3 / 200


def _cache(device: torch.device) -> float:
    """Half of the last cache: others use it, too."""
    if device.type == "cuda":
        return float(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 32 * 2**20)) / 2
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20}
    found = [int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units and size[:-1].isdigit()]
    return max(found, default=32 * 2**20) / 2


def device_name(device: torch.device, threads: int | None = None) -> str:
    """What profiles are kept under: the processor and the threads used (None: PyTorch's number), or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {threads or torch.get_num_threads()} threads"
    )
