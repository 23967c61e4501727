"""Norms over channels only: each pixel for itself, so the field stays. Δy = norm(b + Δ) − norm(b)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.graph import Node
from krypton.operators.base import Builder, Call, Input, Operator, Tile, Value, ViewKey, Whole, channels_last, register


class _PixelNorm(Operator):
    reads = "field"

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.inputs[0], "out"), (node.id, "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,), (rows, columns) = inputs, tile.field(node)
        assert isinstance(source, Delta)
        place = (slice(None), slice(None), slice(*rows), slice(*columns))
        before, after = tile.view(node.inputs[0], "out")[place], tile.view(node.id, "out")[place]
        data = self._norm(node, before + source.window(rows, columns), tile) - after
        return Delta(channels_last(data), rows.start, columns.start, tile.field(node))

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return self._norm(node, inputs[0], whole)

    def _norm(self, node: Node, x: Tensor, whole: Whole) -> Tensor:
        raise NotImplementedError


@register
class ChannelNorm(_PixelNorm):
    """Layer norm over the channels of every pixel (LayerNorm2d). attrs: eps; weights: perhaps weight and bias (C,)."""

    name = "channel_norm"
    targets = ("aten.layer_norm.default",)
    nhwc = True

    def lift(self, call: Call, build: Builder) -> int | None:
        source = call["input"]
        if not call.nhwc or not isinstance(source, Input) or list(call["normalized_shape"]) != [call.shape[0]]:
            return None
        weights = {name: call[name] for name in ("weight", "bias") if call.get(name) is not None}
        if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
            return None
        attrs = {"eps": float(call.get("eps", 1e-5))}
        return build.add("channel_norm", (source,), call.shape, attrs=attrs, weights=weights)

    def _norm(self, node: Node, x: Tensor, whole: Whole) -> Tensor:
        weight, bias = (whole.weight(node.weights[n]) if n in node.weights else None for n in ("weight", "bias"))
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, node.attrs["eps"]).permute(0, 3, 1, 2)


@register
class LocalResponseNorm(_PixelNorm):
    """x / (k + alpha · mean of x² over neighbouring channels)^beta. attrs: size, alpha, beta, k. Recognised as a pattern."""

    name = "local_response_norm"

    def _norm(self, node: Node, x: Tensor, whole: Whole) -> Tensor:
        size, alpha, beta, k = (node.attrs[name] for name in ("size", "alpha", "beta", "k"))
        squares = F.pad((x * x).permute(0, 2, 3, 1), (size // 2, (size - 1) // 2))
        means = F.avg_pool2d(squares.flatten(0, 1), (1, size), 1).reshape(x.permute(0, 2, 3, 1).shape)
        result: Tensor = x / (means * alpha + k).pow(beta).permute(0, 3, 1, 2)
        return result
