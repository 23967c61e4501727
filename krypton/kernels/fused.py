"""Everything elementwise and every pooling window of a delta, in one pass each.

combine: `run(target, field, terms, base)` writes f(base + Σ scale·Δ) − f(base) on `field` and zero elsewhere in `target`;
`terms` are (Delta, scale (C,) or None), the first may be `target` itself; `base` is the view (1, C, h, w) on the field, None
without a function; shifts (C,) in its place make it f(shifts + Σ scale·x), for whole maps.
max_pool: `run(target, source, view, result)`; avg_pool: `run(target, source)`; both write zero outside the target's field.
Views are whole maps (1, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.graph import Node
from krypton.ir.weights import Reference
from krypton.kernels import native
from krypton.kernels.native import Terms, fitting
from krypton.kernels.registry import Kernel, Runner, register_kernel
from krypton.operators.combine import per_channel
from krypton.operators.functions import evaluate
from krypton.operators.pool import divisors


def _build_combine_native(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    call, ending = native.loaded().krypton_combine, native.Ending(node.function)

    def run(target: Delta, field: Box, terms: Terms, base: Tensor | None) -> None:
        call(native.integers(ending.describe(target, field, None, terms, base)), ending.parameters)

    return run


def _build_combine_reference(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    function = node.function

    def run(target: Delta, field: Box, terms: Terms, base: Tensor | None) -> None:
        total = target.data.new_zeros(*target.data.shape[:2], field.rows.size, field.columns.size)
        for delta, scale in terms:
            part = delta.window(*field)
            total = total + (part if scale is None else part * per_channel(scale, 4))
        if function is not None:
            assert base is not None
            total = evaluate(function, base + total) - evaluate(function, base)
        target.data.zero_()
        target.window(*field).copy_(total)

    return run


def _build_max_pool_native(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    call = native.loaded().krypton_max_pool
    numbers = [n for name in ("kernel", "stride", "padding", "dilation") for n in node.attrs[name]]
    fitting(len(numbers) == 8)

    def run(target: Delta, source: Delta, view: Tensor, result: Tensor) -> None:
        data = target.data
        batch, channels, height, width = data.shape
        fitting(source.data.shape[:2] == data.shape[:2] and view.shape[1] == result.shape[1] == channels)
        fitting(target.field.rows.stop <= result.shape[2] and target.field.columns.stop <= result.shape[3])
        fitting(target.rows.contains(target.field.rows) and target.columns.contains(target.field.columns))
        fitting(target.field.rows.start >= 0 <= target.field.columns.start)
        arguments = [
            data.data_ptr(), batch, height, width, channels, *native.strides(data), target.top, target.left,
            source.data.data_ptr(), *native.strides(source.data), *source.rows, *source.columns,
            view.data_ptr(), *native.strides(view)[1:], view.shape[2], view.shape[3],
            result.data_ptr(), *native.strides(result)[1:], *numbers, *target.field.rows, *target.field.columns,
            native.fields_of(target),
        ]  # fmt: skip
        call(native.integers(arguments))

    return run


def _build_max_pool_reference(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    a = node.attrs

    def run(target: Delta, source: Delta, view: Tensor, result: Tensor) -> None:
        # absolute values on the whole map: plain, and right at every border
        before = view.expand(source.data.shape[0], -1, -1, -1).clone()
        rows, columns = source.field
        before[:, :, rows.start : rows.stop, columns.start : columns.stop] += source.on_field()
        after = F.max_pool2d(before, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
        # where a window is padding alone both sides are −inf, and the change is nothing
        change = torch.where(torch.isinf(result), 0.0, after - result)
        target.cleared().data.copy_(Delta(change, 0, 0, target.field).on_field())

    return run


def _build_avg_pool_native(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    call = native.loaded().krypton_avg_pool
    numbers = [n for name in ("kernel", "stride", "padding") for n in node.attrs[name]]
    fitting(len(numbers) == 6)

    def run(target: Delta, source: Delta) -> None:
        data = target.data
        batch, channels, height, width = data.shape
        fitting(source.data.shape[:2] == data.shape[:2])
        fitting(target.rows.contains(target.field.rows) and target.columns.contains(target.field.columns))
        weights = divisors(node, 0, target.field.rows), divisors(node, 1, target.field.columns)
        arguments = [
            data.data_ptr(), batch, height, width, channels, *native.strides(data), target.top, target.left,
            source.data.data_ptr(), *native.strides(source.data), *source.rows, *source.columns,
            weights[0].data_ptr(), weights[1].data_ptr(), *numbers, *target.field.rows, *target.field.columns,
            native.fields_of(target),
        ]  # fmt: skip
        call(native.integers(arguments))

    return run


def _build_avg_pool_reference(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    a = node.attrs

    def run(target: Delta, source: Delta) -> None:
        channels, (height, width) = source.data.shape[1], a["input_size"]
        whole = source.data.new_zeros(source.data.shape[0], channels, height, width)
        rows, columns = source.field
        whole[:, :, rows.start : rows.stop, columns.start : columns.stop] = source.on_field()
        pooled = F.avg_pool2d(
            whole, a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], a["divisor"]
        )
        target.cleared().data.copy_(Delta(pooled, 0, 0, target.field).on_field())

    return run


for _operator, _native, _reference in (
    ("combine", _build_combine_native, _build_combine_reference),
    ("max_pool", _build_max_pool_native, _build_max_pool_reference),
    ("avg_pool", _build_avg_pool_native, _build_avg_pool_reference),
):
    register_kernel(Kernel("reference", _operator, lambda node, device: True, _reference))
    register_kernel(Kernel("native", _operator, native.can_end, _native, priority=10, fused=_operator == "combine"))
