"""Convolutions, and linear layers over channels, which are 1×1 convolutions.

Delta rule: Δy = conv(Δx) without bias, Δx zero-extended to the read window. Nothing of the base is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from krypton.ir.delta import Deferred, Delta, Gated
from krypton.ir.geometry import Interval, Window, dilated, split_read
from krypton.ir.graph import Node
from krypton.operators.base import (
    Axis,
    Builder,
    Call,
    Input,
    Operator,
    Tile,
    Value,
    Whole,
    channels_last,
    one_channel,
    pair,
    register,
)


def same_padding(extent: int) -> tuple[int, int]:
    """Leading and trailing padding of `padding="same"` at stride 1."""
    return (extent - 1) // 2, extent - 1 - (extent - 1) // 2


@register
class Conv(Operator):
    """attrs: kernel, stride, dilation (rows, columns), padding (top, bottom, left, right), groups, in_channels;
    weights: weight (K, C/groups, kh, kw) and perhaps bias (K,)."""

    name = "conv"
    targets = ("aten.conv2d.default", "aten.conv2d.padding", "aten.convolution.default", "aten.linear.default")
    linear = True
    nhwc = True
    arity = 1

    def label(self, node: Node) -> str:
        (height, width), stride = node.attrs["kernel"], node.attrs["stride"]
        words = f"conv {height}×{width}"
        if tuple(stride) != (1, 1):
            words += f" s{stride[0]}" if stride[0] == stride[1] else f" s{stride[0]}×{stride[1]}"
        if tuple(node.attrs["dilation"]) != (1, 1):
            words += f" d{node.attrs['dilation'][0]}"
        groups = node.attrs["groups"]
        if groups > 1:
            words += " depthwise" if groups == node.shape[0] else f" g{groups}"
        return words

    def lift(self, call: Call, build: Builder) -> int | None:
        if call.target == "aten.linear.default":
            return self._lift_linear(call, build)
        if call.nhwc or len(call.shape) != 3 or not isinstance(call["input"], Input):
            return None
        if call.get("transposed", False) or not isinstance(call["weight"], Tensor):
            return None
        bias = call.get("bias")
        if not (bias is None or isinstance(bias, Tensor)):
            return None
        weight, dilation = call["weight"], pair(call.get("dilation", 1))
        padding = call.get("padding", 0)
        if isinstance(padding, str):
            extents = [dilated(k, d) for k, d in zip(weight.shape[2:], dilation, strict=True)]
            pads = [same_padding(extent) if padding == "same" else (0, 0) for extent in extents]
        else:
            pads = [(p, p) for p in pair(padding)]
        attrs = {
            "kernel": list(weight.shape[2:]),
            "stride": list(pair(call.get("stride", 1))),
            "padding": [*pads[0], *pads[1]],
            "dilation": list(dilation),
            "groups": int(call.get("groups", 1)),
            "in_channels": build.node(call["input"]).shape[0],
        }
        weights = {"weight": weight} | ({} if bias is None else {"bias": bias})
        return build.add("conv", (call["input"],), call.shape, attrs=attrs, weights=weights)

    def _lift_linear(self, call: Call, build: Builder) -> int | None:
        weight, bias = call["weight"], call.get("bias")
        if not call.nhwc or not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
            return None
        attrs: dict[str, Any] = {
            "kernel": [1, 1],
            "stride": [1, 1],
            "padding": [0, 0, 0, 0],
            "dilation": [1, 1],
            "groups": 1,
        }
        attrs |= {"in_channels": weight.shape[1]}
        weights = {"weight": weight[:, :, None, None]} | ({} if bias is None else {"bias": bias})
        return build.add("conv", (call["input"],), call.shape, attrs=attrs, weights=weights)

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def window(self, node: Node, axis: Axis) -> Window:
        extent = dilated(node.attrs["kernel"][axis], node.attrs["dilation"][axis])
        return Window(extent, node.attrs["stride"][axis], node.attrs["padding"][2 * axis], node.shape[1 + axis])

    def field(self, node: Node, axis: Axis, changed: Sequence[Interval]) -> Interval:
        return self.window(node, axis).field(changed[0])

    def centre(self, node: Node, axis: Axis) -> tuple[float, float]:
        return self.window(node, axis).centre

    def widens(self, node: Node) -> bool:
        return bool(max(node.attrs["kernel"]) > 1)

    def read(self, node: Node, axis: Axis, outputs: Interval) -> Interval:
        return self.window(node, axis).read(outputs)

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        source, field = inputs[0], tile.field(node)
        result = None
        if isinstance(source, (Delta, Deferred, Gated)):
            if (fused := tile.fused(node, source, inputs[1:])) is not None:  # type: ignore[arg-type]
                return fused
            assert isinstance(source, Delta), "only fused kernels read what is deferred"
            spans = [split_read(source.field[axis], self.read(node, axis, field[axis])) for axis in (0, 1)]
            x = one_channel(channels_last(source.window(spans[0][1], spans[1][1])))
            data = tile.kernel(node)(x, (spans[0][0], spans[1][0]))
            result = Delta(data, field.rows.start, field.columns.start, field)
        return tile.finish(node, result, inputs[1:])  # type: ignore[arg-type]

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        top, bottom, left, right = node.attrs["padding"]
        x, pads = one_channel(inputs[0]), (max(top, 0), max(left, 0))
        if (top, left) != (bottom, right) or min(top, left) < 0:
            x, pads = F.pad(x, (left, right, top, bottom)), (0, 0)
        bias = whole.weight(node.weights["bias"]) if "bias" in node.weights else None
        return F.conv2d(
            x,
            whole.weight(node.weights["weight"]),
            bias,
            node.attrs["stride"],
            pads,
            node.attrs["dilation"],
            node.attrs["groups"],
        )

    def multiply_adds(self, node: Node, rows: int, columns: int) -> int:
        height, width = node.attrs["kernel"]
        channels = node.attrs["in_channels"] // node.attrs["groups"]
        return int(rows * columns * node.shape[0] * channels * height * width)


def convolve(x: Tensor, weight: Tensor, node: Node, padding: tuple[int, int]) -> Tensor:
    """A delta's convolution in plain PyTorch, the reference of all kernels."""
    return F.conv2d(x, weight, None, node.attrs["stride"], padding, node.attrs["dilation"], node.attrs["groups"])
