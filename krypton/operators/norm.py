"""Norms over channels only (LayerNorm2d): each pixel for itself, so the field stays. Δy = norm(b + Δ) − norm(b)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.graph import Node
from krypton.operators.base import Builder, Call, Input, Operator, Tile, Value, ViewKey, Whole, channels_last, register


@register
class ChannelNorm(Operator):
    """Layer norm over the channels of every pixel. attrs: eps; weights: perhaps weight and bias (C,)."""

    name = "channel_norm"
    targets = ("aten.layer_norm.default",)
    reads = "field"
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

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.inputs[0], "out"), (node.id, "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,), (rows, columns) = inputs, tile.field(node)
        assert isinstance(source, Delta)
        place = (slice(None), slice(None), slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        before, after = tile.view(node.inputs[0], "out")[place], tile.view(node.id, "out")[place]
        data = self._norm(node, before + source.window(rows, columns), tile) - after
        return Delta(channels_last(data), rows.start, columns.start, tile.field(node))

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return self._norm(node, inputs[0], whole)

    def _norm(self, node: Node, x: Tensor, whole: Whole) -> Tensor:
        weight, bias = (whole.weight(node.weights[n]) if n in node.weights else None for n in ("weight", "bias"))
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, node.attrs["eps"]).permute(0, 3, 1, 2)
