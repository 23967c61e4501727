"""Pooling over windows: max (reads the base on its window), average and adaptive average (linear)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.geometry import EMPTY, Interval, Window, dilated, make
from krypton.ir.graph import Node
from krypton.operators.base import (
    Axis,
    Builder,
    Call,
    Input,
    Operator,
    Tile,
    Value,
    ViewKey,
    Whole,
    channels_last,
    pair,
    register,
)


class _WindowPool(Operator):
    """attrs: kernel, stride, padding (rows, columns), dilation, ceil_mode."""

    def label(self, node: Node) -> str:
        kernel, stride = node.attrs["kernel"], node.attrs["stride"]
        return f"{self.name} {kernel[0]}×{kernel[1]} s{stride[0]}"

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def window(self, node: Node, axis: Axis) -> Window:
        extent = dilated(node.attrs["kernel"][axis], node.attrs["dilation"][axis])
        return Window(extent, node.attrs["stride"][axis], node.attrs["padding"][axis], node.shape[1 + axis])

    def field(self, node: Node, axis: Axis, changed: Sequence[Interval]) -> Interval:
        return self.window(node, axis).field(changed[0])

    def centre(self, node: Node, axis: Axis) -> tuple[float, float]:
        return self.window(node, axis).centre

    def widens(self, node: Node) -> bool:
        return True


def _window_attrs(call: Call) -> dict[str, object]:
    kernel = pair(call["kernel_size"])
    return {
        "kernel": list(kernel),
        "stride": list(pair(call.get("stride") or kernel)),
        "padding": list(pair(call.get("padding", 0))),
        "dilation": list(pair(call.get("dilation", 1))),
        "ceil_mode": bool(call.get("ceil_mode", False)),
    }


@register
class MaxPool(_WindowPool):
    """Δy = pool(b + Δx on the window) − y_b. Taps outside the image are −inf; a window of padding alone gives 0."""

    name = "max_pool"
    targets = ("aten.max_pool2d.default", "aten.max_pool2d_with_indices.default")
    reads = "window"

    def lift(self, call: Call, build: Builder) -> int | None:
        if len(call.shape) != 3 or not isinstance(call["self"], Input):
            return None
        return build.add("max_pool", (call["self"],), call.shape, attrs=_window_attrs(call))

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.inputs[0], "out"), (node.id, "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        assert isinstance(inputs[0], Delta)
        target = tile.target(node)
        view, result = tile.view(node.inputs[0], "out"), tile.view(node.id, "out")
        tile.kernel(node)(target, inputs[0], view, result)
        return target

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        a = node.attrs
        return F.max_pool2d(inputs[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])


@register
class AveragePool(_WindowPool):
    """Linear, with the exact divisor of every position."""

    name = "avg_pool"
    targets = ("aten.avg_pool2d.default",)
    linear = True

    def lift(self, call: Call, build: Builder) -> int | None:
        if len(call.shape) != 3 or not isinstance(call["self"], Input):
            return None
        attrs = _window_attrs(call) | {
            "count_include_pad": bool(call.get("count_include_pad", True)),
            "divisor": call.get("divisor_override"),
            "input_size": list(build.node(call["self"]).shape[1:]),
        }
        return build.add("avg_pool", (call["self"],), call.shape, attrs=attrs)

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        assert isinstance(inputs[0], Delta)
        target = tile.target(node)
        tile.kernel(node)(target, inputs[0])
        return target

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        a = node.attrs
        return F.avg_pool2d(
            inputs[0], a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], a["divisor"]
        )


def divisors(node: Node, axis: Axis, outputs: Interval) -> Tensor:
    """Weights (n,) of an average pool's outputs along one axis; a position's weight is the product of its two axes'."""
    kernel, stride, padding = (node.attrs[name][axis] for name in ("kernel", "stride", "padding"))
    size = node.attrs["input_size"][axis]
    if node.attrs["divisor"]:
        return torch.full((outputs.size,), node.attrs["divisor"] ** -0.5)
    weights = []
    for output in range(outputs.start, outputs.stop):
        start = output * stride - padding
        stop = min(start + kernel, size + padding)
        count = stop - start if node.attrs["count_include_pad"] else min(stop, size) - max(start, 0)
        weights.append(1.0 / max(count, 1))
    return torch.tensor(weights)


def adaptive_bounds(output: int, outputs: int, inputs: int) -> Interval:
    """The inputs that one output of an adaptive pool averages."""
    return Interval(output * inputs // outputs, -((-(output + 1) * inputs) // outputs))


@register
class AdaptiveAveragePool(Operator):
    """Adaptive average pooling to k×k: linear, windows of unequal size. attrs: input_size. (To 1×1 it is a mean.)"""

    name = "adaptive_avg_pool"
    targets = ("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
    linear = True

    def label(self, node: Node) -> str:
        return f"adaptive_avg_pool to {node.shape[1]}×{node.shape[2]}"

    def lift(self, call: Call, build: Builder) -> int | None:
        source = call["self"]
        if len(call.shape) != 3 or not isinstance(source, Input):
            return None
        size = build.node(source).shape[1:]
        if call.shape[1:] == size:
            return int(source)
        if call.shape[1:] == (1, 1):
            return build.add("mean", (source,), call.shape, attrs={"input_size": list(size)})
        return build.add("adaptive_avg_pool", (source,), call.shape, attrs={"input_size": list(size)})

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def field(self, node: Node, axis: Axis, changed: Sequence[Interval]) -> Interval:
        size, inputs = node.shape[1 + axis], node.attrs["input_size"][axis]
        touched = [
            output
            for output in range(size)
            if (bounds := adaptive_bounds(output, size, inputs)).start < changed[0].stop and changed[0].start < bounds.stop
        ]
        return make(touched[0], touched[-1] + 1) if touched and not changed[0].empty else EMPTY

    def centre(self, node: Node, axis: Axis) -> tuple[float, float]:
        scale = node.attrs["input_size"][axis] / node.shape[1 + axis]
        return scale, (scale - 1) / 2

    def widens(self, node: Node) -> bool:
        return True

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,), field = inputs, tile.field(node)
        assert isinstance(source, Delta)
        x = source.on_field()
        rows, columns = (self._matrix(node, axis, field[axis], source.field[axis]).to(x.device) for axis in (0, 1))
        data = channels_last(torch.einsum("oh,bchw,pw->bcop", rows, x, columns))
        return Delta(data, field.rows.start, field.columns.start, field)

    def _matrix(self, node: Node, axis: Axis, outputs: Interval, changed: Interval) -> Tensor:
        matrix = torch.zeros(outputs.size, changed.size)
        for row, output in enumerate(range(outputs.start, outputs.stop)):
            bounds = adaptive_bounds(output, node.shape[1 + axis], node.attrs["input_size"][axis])
            start, stop = max(bounds.start, changed.start), min(bounds.stop, changed.stop)
            if start < stop:
                matrix[row, start - changed.start : stop - changed.start] = 1.0 / bounds.size
        return matrix

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return F.adaptive_avg_pool2d(inputs[0], (node.shape[1], node.shape[2]))
