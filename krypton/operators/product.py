"""The product of two maps of one shape: (a + Δa)(b + Δb) − ab. Products that broadcast (gates) are opaque."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.graph import Node
from krypton.operators.base import (
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
class Product(Operator):
    """Elementwise; inputs of equal shape (C, H, W), or vectors."""

    name = "mul"
    targets = ("aten.mul.Tensor",)
    reads = "field"
    nhwc = True

    def lift(self, call: Call, build: Builder) -> int | None:
        left, right = call["self"], call["other"]
        if not isinstance(left, Input) or not isinstance(right, Input):
            return None
        if not build.node(left).shape == build.node(right).shape == call.shape:
            return None
        return build.add("mul", (left, right), call.shape)

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return node.spatial

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.inputs[0], "out"), (node.inputs[1], "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        field = tile.field(node)
        rows, columns = field
        place = (slice(None), slice(None), slice(rows.start, rows.stop), slice(columns.start, columns.stop))
        a, b = (tile.view(source, "out")[place] for source in node.inputs)
        change_a, change_b = (v.window(rows, columns) if isinstance(v, Delta) else None for v in inputs)
        # (a + Δa)(b + Δb) − ab, written without the large terms that would cancel
        data = a * change_b if change_b is not None else 0.0
        if change_a is not None:
            data = data + change_a * (b if change_b is None else b + change_b)
        assert isinstance(data, Tensor)
        return Delta(channels_last(data), rows.start, columns.start, field)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return inputs[0] * inputs[1]
