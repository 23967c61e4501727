"""Zero padding, cropping and spatial slices: they shift and clip the field. Zero padding folds into a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.ir.geometry import Interval
from krypton.ir.graph import Node
from krypton.operators.base import Axis, Builder, Call, Input, Operator, Tile, Value, Whole, register, spatial_size


@register
class Pad(Operator):
    """attrs: padding (top, bottom, left, right), negative where it crops; value: what the border is filled with (0)."""

    name = "pad"
    targets = ("aten.constant_pad_nd.default", "aten.pad.default")
    linear = True

    def label(self, node: Node) -> str:
        return "pad " + ",".join(str(p) for p in node.attrs["padding"])

    def lift(self, call: Call, build: Builder) -> int | None:
        source = call["self"]
        if call.get("mode", "constant") != "constant" or not isinstance(source, Input) or len(call.shape) != 3:
            return None
        pads = [int(p) for p in call["pad"]] + [0] * 8
        if any(pads[4:8]):
            return None
        left, right, top, bottom = pads[:4]
        attrs = {"padding": [top, bottom, left, right], "value": float(call.get("value", 0.0))}
        return build.add("pad", (source,), call.shape, attrs=attrs)

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return True

    def field(self, node: Node, axis: Axis, changed: Sequence[Interval]) -> Interval:
        return changed[0].shift(node.attrs["padding"][2 * axis]).clip(spatial_size(node, axis))

    def centre(self, node: Node, axis: Axis) -> tuple[float, float]:
        return 1.0, float(-node.attrs["padding"][2 * axis])

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        (source,), field = inputs, tile.field(node)
        assert isinstance(source, Delta)
        top, _, left, _ = node.attrs["padding"]
        # only what lies inside the new border: what was cropped away must not come back as somebody's padding
        data = source.window(field.rows.shift(-top), field.columns.shift(-left))
        return Delta(data, field.rows.start, field.columns.start, field)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        top, bottom, left, right = node.attrs["padding"]
        return F.pad(inputs[0], (left, right, top, bottom), value=node.attrs.get("value", 0.0))
