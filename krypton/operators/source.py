"""Nodes without inputs: the image, constants, and the size of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krypton.ir.graph import Node
from krypton.operators.base import Operator, Whole, register


@register
class Image(Operator):
    """The occluded image, (C, H, W): every graph's first node. Its delta is mask · (fill − x)."""

    name = "image"

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        raise AssertionError("the executor supplies the image")


@register
class Constant(Operator):
    """A tensor of the model that varies over the map; weights: value (C, H, W)."""

    name = "constant"

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return whole.weight(node.weights["value"])[None]


@register
class BatchSize(Operator):
    """How many occlusions are computed together, as models read it from their input's shape."""

    name = "batch_size"

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return torch.tensor(whole.batch)
