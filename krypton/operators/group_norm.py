"""Norms over groups of channels and all of space: group norm, and instance norm, whose groups are single channels.

Such a norm looks at the whole map, so that every occlusion changes every pixel behind it: there is no delta rule. Taken for
constant, mean and variance leave a scale and a shift per channel (see planner/rules/freeze_statistics.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.ir.graph import Node
from krypton.operators.base import Builder, Call, Input, Operator, Whole, register


@register
class GroupNorm(Operator):
    """attrs: groups, eps; weights: perhaps weight and bias (C,)."""

    name = "group_norm"
    targets = ("aten.group_norm.default", "aten.instance_norm.default")

    def label(self, node: Node) -> str:
        groups = int(node.attrs["groups"])
        return "instance norm" if groups == node.shape[0] else f"group norm, {groups} groups"

    def lift(self, call: Call, build: Builder) -> int | None:
        source = call["input"]
        instance = "instance_norm" in call.target
        weights = {name: call[name] for name in ("weight", "bias") if call.get(name) is not None}
        if not isinstance(source, Input) or len(call.shape) != 3 or not all(isinstance(w, Tensor) for w in weights.values()):
            return None
        if instance and not call["use_input_stats"]:
            return None
        attrs = {"groups": call.shape[0] if instance else int(call["num_groups"]), "eps": float(call.get("eps", 1e-5))}
        return build.add("group_norm", (source,), call.shape, attrs=attrs, weights=weights)

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        weight, bias = (whole.weight(node.weights[n]) if n in node.weights else None for n in ("weight", "bias"))
        return F.group_norm(inputs[0], node.attrs["groups"], weight, bias, node.attrs["eps"])


class _OfGroups(Operator):
    """What a group norm does with each channel, (C, 1, 1), from the map that it would norm. attrs and weights are its own."""

    def label(self, node: Node) -> str:
        return self.name.replace("_", " ")

    def _moments(self, node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation of each channel's group (B, C)."""
        batch, groups = x.shape[0], node.attrs["groups"]
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        of_group = mean.view(batch, groups, -1)
        within = variance.view(batch, groups, -1).mean(2, keepdim=True)
        spread = torch.rsqrt(within + of_group.var(2, correction=0, keepdim=True) + node.attrs["eps"])
        return tuple(value.expand_as(of_group).reshape(batch, -1) for value in (of_group.mean(2, keepdim=True), spread))  # type: ignore[return-value]

    def _scale(self, node: Node, spread: Tensor, whole: Whole) -> Tensor:
        return spread * whole.weight(node.weights["weight"]) if "weight" in node.weights else spread


@register
class GroupScale(_OfGroups):
    """The weight over the standard deviation."""

    name = "group_scale"

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        return self._scale(node, self._moments(node, inputs[0])[1], whole)[..., None, None]


@register
class GroupShift(_OfGroups):
    """The bias less the scaled mean."""

    name = "group_shift"

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        mean, spread = self._moments(node, inputs[0])
        shift = -mean * self._scale(node, spread, whole)
        shift = shift + whole.weight(node.weights["bias"]) if "bias" in node.weights else shift
        return shift[..., None, None]
