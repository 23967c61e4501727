"""Operators that move channels about: concat, slice, shuffle. Fields unite or stay; nothing is computed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.graph import Node
from krypton.operators.base import Builder, Call, Input, Operator, Tile, Value, Whole, channels_last, register


@register
class Concat(Operator):
    """Along channels. Its inputs are written straight into its buffer where the memory plan can place them there."""

    name = "concat"
    targets = ("aten.cat.default", "aten.concat.default")
    linear = True

    def lift(self, call: Call, build: Builder) -> int | None:
        tensors, dim = call["tensors"], call.get("dim", 0)
        if len(call.shape) != 3 or dim not in (1, -3) or not all(isinstance(t, (Input, Tensor)) for t in tensors):
            return None
        sources = []
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                if tensor.dim() != 4 or tensor.shape[0] != 1:
                    return None
                tensor = build.add("constant", (), tensor.shape[1:], weights={"value": tensor[0].contiguous()})
            elif len(build.node(tensor).shape) != 3:
                return None
            sources.append(int(tensor))
        if len(sources) == 1:
            return sources[0]
        return build.add("concat", sources, call.shape, attrs={"sizes": [build.node(s).shape[0] for s in sources]})

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        target, start = tile.target(node), 0
        for value, source, size in zip(inputs, node.inputs, node.attrs["sizes"], strict=True):
            if not isinstance(value, Delta):
                target.data[:, start : start + size].zero_()
            elif not tile.placed(source, node.id, start):  # else it was written here
                target.data[:, start : start + size].copy_(value.window(target.rows, target.columns))
            start += size
        return target

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return torch.cat([value.expand(inputs[0].shape[0], -1, -1, -1) for value in inputs], 1)


@register
class ChannelSlice(Operator):
    """Channels [start, stop). Slices, splits, chunks and selections of channels are all lifted to it.

    A change in place of `x[:]` is captured as the scattering of a slice that is everything, which is the slice itself.
    """

    name = "channel_slice"
    targets = ("aten.slice.Tensor", "aten.slice_scatter.default", "aten.copy.default")
    linear = True

    def label(self, node: Node) -> str:
        return f"channels {node.attrs['start']}:{node.attrs['stop']}"

    def lift(self, call: Call, build: Builder) -> int | None:
        if "src" in call.arguments:
            return _all_of_it(call, build)
        source = call["self"]
        if not isinstance(source, Input) or call.get("step", 1) != 1 or len(call.shape) != 3:
            return None
        shape, dim = build.node(source).shape, int(call.get("dim", 0))
        if len(shape) != 3:
            return None
        dim = dim + 4 if dim < 0 else dim
        if dim == 0:
            return int(source) if call.shape == shape and not call.get("start", 0) else None
        size = shape[dim - 1]
        start, stop, _ = slice(call.get("start"), call.get("end")).indices(size)
        if (start, stop) == (0, size):
            return int(source)
        if dim == 1:
            return build.add("channel_slice", (source,), call.shape, attrs={"start": start, "stop": stop})
        padding = [0, 0, 0, 0]
        padding[2 * (dim - 2) : 2 * (dim - 2) + 2] = [-start, stop - size]
        return build.add("pad", (source,), call.shape, attrs={"padding": padding})

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,) = inputs
        assert isinstance(source, Delta)
        return Delta(source.data[:, node.attrs["start"] : node.attrs["stop"]], source.top, source.left, source.field)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return inputs[0][:, node.attrs["start"] : node.attrs["stop"]]


def _all_of_it(call: Call, build: Builder) -> int | None:
    """What is copied or scattered, if that replaces everything."""
    source = call["src"]
    if not isinstance(source, Input) or build.node(source).shape != call.shape or call.get("step", 1) != 1:
        return None
    dim = int(call.get("dim", 0)) % (len(call.shape) + 1)
    if dim == 0:
        whole = not call.get("start", 0) and call.get("end", sys.maxsize) == sys.maxsize  # how many images is not known
    else:
        size = call.shape[dim - 1]
        whole = slice(call.get("start"), call.get("end")).indices(size)[:2] == (0, size)
    return int(source) if whole else None


@register
class ChannelShuffle(Operator):
    """A shuffle of channel groups: (groups, C/groups) transposed. attrs: groups."""

    name = "channel_shuffle"
    targets = ("aten.channel_shuffle.default",)
    linear = True

    def label(self, node: Node) -> str:
        return f"channel_shuffle g{node.attrs['groups']}"

    def lift(self, call: Call, build: Builder) -> int | None:
        if len(call.shape) != 3 or not isinstance(call["self"], Input):
            return None
        return build.add("channel_shuffle", (call["self"],), call.shape, attrs={"groups": int(call["groups"])})

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,) = inputs
        assert isinstance(source, Delta)
        return Delta(self._shuffle(node, source.data), source.top, source.left, source.field)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return self._shuffle(node, inputs[0])

    def _shuffle(self, node: Node, x: Tensor) -> Tensor:
        groups = node.attrs["groups"]
        batch, channels, height, width = x.shape
        shuffled = x.reshape(batch, groups, channels // groups, height, width).transpose(1, 2)
        return channels_last(shuffled.reshape(batch, channels, height, width))
