"""Everything elementwise and every pooling window of a delta, in one pass each.

combine: `run(target, field, terms, base)` writes f(base + Σ scale·Δ) − f(base) on `field` and zero elsewhere in `target`;
`terms` are (Delta, scale (C,) or None), the first may be `target` itself; `base` is the view (1, C, h, w) on the field, None
without a function.
max_pool: `run(target, source, view, result)`; avg_pool: `run(target, source)`; both write zero outside the target's field.
Views are whole maps (1, C, H, W).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.errors import PlanError, unknown
from krypton.ir.delta import Box, Delta
from krypton.ir.graph import Node
from krypton.ir.weights import Reference
from krypton.kernels import native
from krypton.kernels.registry import Kernel, Runner, register_kernel
from krypton.operators.combine import per_channel
from krypton.operators.functions import evaluate
from krypton.operators.pool import divisors

Terms = Sequence[tuple[Delta, Tensor | None]]


def _native_supports(node: Node, device: torch.device) -> bool:
    if device.type != "cpu" or native.library() is None:
        return False
    if node.epilogue is None:
        return True
    function = node.epilogue.function
    return len(node.epilogue.terms) <= native.MOST_TERMS and (function is None or function.name in native.NATIVE_FUNCTIONS)


def _library() -> ctypes.CDLL:
    loaded = native.library()
    if loaded is None:
        raise PlanError("the plan wants compiled kernels, which need a C++ compiler here: plan the query again on this machine")
    return loaded


def _fitting(condition: bool) -> None:
    """Compiled code trusts what it is given, so a plan whose parts contradict each other must end here."""
    if not condition:
        raise PlanError("the plan's nodes and weights do not fit together: it is damaged, plan the query again")


def _build_combine_native(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    function = node.function
    call = _library().krypton_combine
    if function and function.name not in native.NATIVE_FUNCTIONS:
        raise PlanError(unknown("function", function.name, native.NATIVE_FUNCTIONS))
    number = native.NATIVE_FUNCTIONS[function.name] if function else 0
    _fitting(not node.epilogue or len(node.epilogue.terms) <= native.MOST_TERMS)
    p, q = (*(function.parameters if function else ()), 0.0, 0.0)[:2]

    def run(target: Delta, field: Box, terms: Terms, base: Tensor | None) -> None:
        data, top, left = target.data, target.top, target.left
        batch, channels, height, width = data.shape
        rows, columns = field
        _fitting(target.rows.contains(rows) and target.columns.contains(columns))
        _fitting(base is None or base.shape == (1, channels, rows.size, columns.size))
        arguments = [
            data.data_ptr(), batch, height, width, channels, *native.strides(data),
            rows.start - top, rows.stop - top, columns.start - left, columns.stop - left,
            *((base.data_ptr(), *native.strides(base)[1:]) if base is not None else (0, 0, 0)), number, len(terms),
        ]  # fmt: skip
        for delta, scale in terms:
            (r0, r1), (c0, c1) = delta.rows, delta.columns
            _fitting(delta.data.shape[:2] == data.shape[:2])
            _fitting(scale is None or (scale.shape == (channels,) and scale.dtype == torch.float32))
            arguments += [
                delta.data.data_ptr(), *native.strides(delta.data), r0 - top, r1 - top, c0 - left, c1 - left,
                0 if scale is None else scale.data_ptr(),
            ]  # fmt: skip
        call(native.integers(arguments), p, q)

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
    call = _library().krypton_max_pool
    numbers = [n for name in ("kernel", "stride", "padding", "dilation") for n in node.attrs[name]]
    _fitting(len(numbers) == 8)

    def run(target: Delta, source: Delta, view: Tensor, result: Tensor) -> None:
        data = target.data
        batch, channels, height, width = data.shape
        _fitting(source.data.shape[:2] == data.shape[:2] and view.shape[1] == result.shape[1] == channels)
        _fitting(target.field.rows.stop <= result.shape[2] and target.field.columns.stop <= result.shape[3])
        _fitting(target.rows.contains(target.field.rows) and target.columns.contains(target.field.columns))
        _fitting(target.field.rows.start >= 0 <= target.field.columns.start)
        arguments = [
            data.data_ptr(), batch, height, width, channels, *native.strides(data), target.top, target.left,
            source.data.data_ptr(), *native.strides(source.data), *source.rows, *source.columns,
            view.data_ptr(), *native.strides(view)[1:], view.shape[2], view.shape[3],
            result.data_ptr(), *native.strides(result)[1:], *numbers, *target.field.rows, *target.field.columns,
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
    call = _library().krypton_avg_pool
    numbers = [n for name in ("kernel", "stride", "padding") for n in node.attrs[name]]
    _fitting(len(numbers) == 6)

    def run(target: Delta, source: Delta) -> None:
        data = target.data
        batch, channels, height, width = data.shape
        _fitting(source.data.shape[:2] == data.shape[:2])
        _fitting(target.rows.contains(target.field.rows) and target.columns.contains(target.field.columns))
        weights = divisors(node, 0, target.field.rows), divisors(node, 1, target.field.columns)
        arguments = [
            data.data_ptr(), batch, height, width, channels, *native.strides(data), target.top, target.left,
            source.data.data_ptr(), *native.strides(source.data), *source.rows, *source.columns,
            weights[0].data_ptr(), weights[1].data_ptr(), *numbers, *target.field.rows, *target.field.columns,
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
    register_kernel(Kernel("native", _operator, _native_supports, _native, priority=10))
