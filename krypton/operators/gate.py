"""The product of a map with one number per channel that depends on the image: the gate of a squeeze-and-excitation block.

A gate looks at the whole map, so that every occlusion changes every pixel behind it: there is no delta rule, unless the gate is
taken for constant (see planner/rules/freeze_statistics.py): Δy = s_b·Δx. Where the only reader is a 1×1 convolution, that
multiplies as it reads (see planner/rules/defer_gate.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.graph import Node
from krypton.operators.base import Builder, Call, Input, Operator, Tile, Value, ViewKey, Whole, channels_last, register


@register
class Gate(Operator):
    """Inputs: the map (C, H, W) and the gate (C, 1, 1)."""

    name = "gate"
    targets = ("aten.mul.Tensor",)

    def lift(self, call: Call, build: Builder) -> int | None:
        sides = call["self"], call["other"]
        if call.nhwc or not all(isinstance(side, Input) for side in sides):
            return None
        shapes = [build.node(side).shape for side in sides]
        for (source, gate), (shape, gated) in zip((sides, sides[::-1]), (shapes, shapes[::-1]), strict=True):
            if len(shape) == 3 and shape == call.shape and gated == (shape[0], 1, 1) != shape:
                return build.add("gate", (source, gate), call.shape)
        return None

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return list(changed) == [True, False]

    def views(self, node: Node) -> list[ViewKey]:
        return [(node.inputs[1], "out")]

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        source, (rows, columns) = inputs[0], tile.field(node)
        assert isinstance(source, Delta)
        data = source.window(rows, columns) * tile.view(node.inputs[1], "out")
        return Delta(channels_last(data), rows.start, columns.start, tile.field(node))

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return inputs[0] * inputs[1]
