"""Convolutions of deltas: `run(x, padding) -> y`.

x (B, C, h, w) and y (B, K, h', w') are float32, channels innermost; `padding` is symmetric, (rows, columns). The bias is not
part of a delta.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from krypton.ir.graph import Node
from krypton.ir.weights import Reference
from krypton.kernels.registry import Kernel, Runner, register_kernel
from krypton.operators.base import channels_last
from krypton.operators.conv import convolve

_SHAPE_HINT = (16, 14)  # batch and side that oneDNN lays the weights out for; others run too


def _build_reference(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    packed = channels_last(weight(node.weights["weight"]))

    def run(x: Tensor, padding: tuple[int, int]) -> Tensor:
        return channels_last(convolve(x, packed, node, padding))

    return run


def _onednn_supports(node: Node, device: torch.device) -> bool:
    return device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _build_onednn(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    """oneDNN with weights laid out once, which PyTorch otherwise does at every call."""
    stride, dilation, groups = list(node.attrs["stride"]), list(node.attrs["dilation"]), node.attrs["groups"]
    batch, side = _SHAPE_HINT
    extents = [d * (k - 1) + 1 for k, d in zip(node.attrs["kernel"], dilation, strict=True)]
    hint = [batch, node.attrs["in_channels"], side + extents[0] - 1, side + extents[1] - 1]
    packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        weight(node.weights["weight"]).contiguous().to_mkldnn(), [0, 0], stride, dilation, groups, hint
    )
    convolution = torch.ops.mkldnn._convolution_pointwise.default

    def run(x: Tensor, padding: tuple[int, int]) -> Tensor:
        return channels_last(convolution(x, packed, None, list(padding), stride, dilation, groups, "none", [], ""))

    return run


register_kernel(Kernel("reference", "conv", lambda node, device: True, _build_reference))
register_kernel(Kernel("onednn", "conv", _onednn_supports, _build_onednn, priority=10))
