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

_SAME_MAGNITUDE = 1.8


def _build_reference(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    packed = channels_last(weight(node.weights["weight"]))

    def run(x: Tensor, padding: tuple[int, int]) -> Tensor:
        return channels_last(convolve(x, packed, node, padding))

    return run


def _onednn_supports(node: Node, device: torch.device) -> bool:
    # of a single channel, results that are one pixel wide come out wrong (PyTorch 2.14; see operators.base.one_channel)
    able = device.type == "cpu" and node.attrs["in_channels"] > 1
    return able and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _build_onednn(node: Node, weight: Callable[[Reference], Tensor]) -> Runner:
    """oneDNN with weights laid out beforehand, which PyTorch otherwise does at every call.

    The best layout depends on the shape: weights laid out for 14×14 maps can run at a quarter of the speed on 7×7. So they
    are laid out at the first use, and again only for maps of another magnitude.
    """
    stride, dilation, groups = list(node.attrs["stride"]), list(node.attrs["dilation"]), node.attrs["groups"]
    plain = weight(node.weights["weight"]).contiguous()
    layouts: list[tuple[int, Tensor]] = []  # pixels it was made for, weights
    convolution = torch.ops.mkldnn._convolution_pointwise.default

    def laid_out(x: Tensor, padding: list[int]) -> Tensor:
        pixels = x.shape[2] * x.shape[3]
        for made_for, packed in layouts:
            if made_for <= pixels * _SAME_MAGNITUDE and pixels <= made_for * _SAME_MAGNITUDE:
                return packed
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
            plain.to_mkldnn(), padding, stride, dilation, groups, list(x.shape)
        )
        layouts.append((pixels, packed))
        return packed

    def run(x: Tensor, padding: tuple[int, int]) -> Tensor:
        pads = list(padding)
        return channels_last(convolution(x, laid_out(x, pads), None, pads, stride, dilation, groups, "none", [], ""))

    return run


register_kernel(Kernel("reference", "conv", lambda node, device: True, _build_reference))
register_kernel(Kernel("onednn", "conv", _onednn_supports, _build_onednn, priority=10))
