"""Vectors: flattening a map and linear layers. They are whole: one GEMM serves all positions of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.ir.graph import Node
from krypton.operators.base import Builder, Call, Input, Operator, Whole, register


@register
class Flatten(Operator):
    """(C, H, W) to (C·H·W,), in the model's order."""

    name = "flatten"
    targets = ("aten.view.default", "aten.reshape.default", "aten.flatten.using_ints", "aten._unsafe_view.default")
    linear = True

    def lift(self, call: Call, build: Builder) -> int | None:
        source = next(iter(call.arguments.values()))
        if not isinstance(source, Input):
            return None
        shape = build.node(source).shape
        if call.shape == shape:
            return int(source)
        if len(shape) != 3 or len(call.shape) != 1:
            return None
        return build.add("flatten", (source,), call.shape)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return inputs[0].flatten(1)


@register
class Linear(Operator):
    """(N,) to (K,); weights: weight (K, N) and perhaps bias (K,)."""

    name = "linear"
    targets = ("aten.linear.default", "aten.addmm.default")
    linear = True

    def lift(self, call: Call, build: Builder) -> int | None:
        if call.target == "aten.addmm.default":
            source, weight, bias = call["mat1"], call["mat2"], call["self"]
            if not isinstance(weight, Tensor) or call.get("alpha", 1) != 1 or call.get("beta", 1) != 1:
                return None
            weight = weight.t().contiguous()
        else:
            source, weight, bias = call["input"], call["weight"], call.get("bias")
        if not isinstance(source, Input) or not isinstance(weight, Tensor) or len(build.node(source).shape) != 1:
            return None
        if not (bias is None or (isinstance(bias, Tensor) and bias.dim() == 1)):
            return None
        weights = {"weight": weight} | ({} if bias is None else {"bias": bias})
        return build.add("linear", (source,), call.shape, attrs={"features": weight.shape[1]}, weights=weights)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        bias = whole.weight(node.weights["bias"]) if "bias" in node.weights else None
        return linear(inputs[0], whole.weight(node.weights["weight"]), bias)

    def multiply_adds(self, node: Node, rows: int, columns: int) -> int:
        return int(node.shape[0]) * int(node.attrs["features"])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias, x (B, N). On CPUs by oneDNN: PyTorch asks MKL, which on some is a third slower. What gradients
    are asked of is left to PyTorch: its way to oneDNN has none."""
    mine = x.device.type == "cpu" and x.dtype == torch.float32 and not x.requires_grad
    if mine and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return F.linear(x, weight, bias)
