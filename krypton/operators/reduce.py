"""Where increments end: spatial means (the field disappears) and projection (a delta becomes a whole map again)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.geometry import EMPTY, Interval
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
    register,
)


@register
class Mean(Operator):
    """Over both spatial axes: y_b + ΣΔ / (H·W). attrs: input_size. The result (C,) or (C, 1, 1) is small, so it is whole."""

    name = "mean"
    targets = ("aten.mean.dim",)
    linear = True
    nhwc = True

    def label(self, node: Node) -> str:
        return "mean over space"

    def lift(self, call: Call, build: Builder) -> int | None:
        source = call["self"]
        if not isinstance(source, Input) or len(build.node(source).shape) != 3 or call.get("dtype") is not None:
            return None
        axes = sorted(int(d) % 4 for d in call.get("dim", ()))
        if axes != ([1, 2] if call.nhwc else [2, 3]):
            return None
        channels, *size = build.node(source).shape
        shape = (channels, 1, 1) if call.get("keepdim", False) else (channels,)
        return build.add("mean", (source,), shape, attrs={"input_size": size})

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def result_mode(self, node: Node) -> Literal["delta", "project"]:
        return "project"

    def field(self, node: Node, axis: Axis, changed: Sequence[Interval]) -> Interval:
        return EMPTY if changed[0].empty else Interval(0, 1)

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.id, "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,) = inputs
        assert isinstance(source, Delta)
        height, width = node.attrs["input_size"]
        change = source.data.sum((2, 3)) / (height * width)
        result: Tensor = tile.view(node.id, "out") + change.reshape(-1, *node.shape)
        return result

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return inputs[0].mean((2, 3)).reshape(-1, *node.shape)


@register
class Project(Operator):
    """b + scatter(Δ): from here on values are whole. The planner inserts it; capture never makes one."""

    name = "project"
    linear = True

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def result_mode(self, node: Node) -> Literal["delta", "project"]:
        return "project"

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.inputs[0], "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,) = inputs
        assert isinstance(source, Delta)
        base = tile.view(node.inputs[0], "out")
        whole = channels_last(base.expand(tile.batch, *base.shape[1:]).clone())
        rows, columns = source.field
        whole[:, :, rows.start : rows.stop, columns.start : columns.stop] += source.on_field()
        return whole

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return inputs[0]
