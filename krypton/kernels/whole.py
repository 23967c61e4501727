"""Nodes in mode full by the kernels of delta rules: a whole map is a delta on the whole box, and its ending is absolute.

Bias, shifts, scales, further terms and function are so one pass over what a kernel computed, while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta, Gated
from krypton.ir.geometry import Interval
from krypton.ir.graph import Node, Term
from krypton.ir.weights import Reference
from krypton.kernels import native
from krypton.kernels.chain import Chain
from krypton.kernels.registry import DEFERRED, KERNELS, Kernel, able

Weight = Callable[[Reference], Tensor]
WholeRunner = Callable[..., Any]
"""From a node's whole inputs (B, C, h, w), or (1, C, h, w), to its result (B, C, H, W), channels innermost; that is written to
the tensor of its shape that follows, if that is not None, and noted in a `chain` instead of computed, if that is given."""


def able_whole(node: Node, device: torch.device) -> list[Kernel]:
    """The kernels that can run a node in mode full, those first that are usually the fastest; none: PyTorch is to run it."""
    if not node.spatial or (node.op == "combine" and node.function is None and len(node.inputs) == 1):
        return []  # vectors; and a mere scale is one pass in PyTorch, too
    return [kernel for kernel in able(node.op, node, device) if kernel.fused]


def whole_kernel(node: Node) -> Kernel | None:
    """The kernel that a plan names for a node in mode full, if it can run one there."""
    if node.mode != "full" or not node.spatial or node.kernel in ("", DEFERRED):
        return None
    name = node.own_kernel
    return next((k for k in KERNELS if (k.operator, k.name) == (node.op, name) and k.fused), None)


def build_whole(kernel: Kernel, node: Node, weight: Weight) -> WholeRunner:
    """A kernel made ready to run one node on whole inputs."""
    runner, terms, field = kernel.build(node, weight), _terms(node), whole_box(*node.shape[1:])
    scales = [weight(term.scale) if term.scale else None for term in terms]
    shifts, own = _shifts(node, weight), None
    further: list[tuple[int, Tensor | None]] = []
    for term, scale in zip(terms, scales, strict=True):
        if term.input < 0:
            own = scale
        else:
            further.append((term.input, scale))

    def run(inputs: Sequence[Tensor | Gated], room: Tensor | None = None, chain: Chain | None = None) -> Tensor:
        batch = max(len(value.gate if isinstance(value, Gated) else value) for value in inputs)
        fits = room is not None and len(room) == batch
        result = room if fits else torch.empty((batch, *node.shape), memory_format=torch.channels_last)
        assert result is not None
        target = Delta(result, 0, 0, field)
        values = [_on_whole_box(value, batch) for value in inputs]
        added = [(values[place], scale) for place, scale in further]
        if node.op == "combine":
            runner(target, field, added, shifts)
        else:
            runner(target, field, values[0], own, added, shifts, **({} if chain is None else {"chain": chain}))
        return result

    return run


def joined(inputs: Sequence[Tensor | Gated], room: Tensor | None) -> Tensor:
    """A concat in the room of which some of its inputs were written already."""
    assert room is not None
    start = 0
    for value in inputs:
        assert isinstance(value, Tensor)
        part = room[:, start : start + value.shape[1]]
        if value.data_ptr() != part.data_ptr():
            part.copy_(value)
        start += value.shape[1]
    return room


def gated(inputs: Sequence[Tensor | Gated], room: Tensor | None = None) -> Gated:
    """A map times a gate (B, C, 1, 1), left to its only reader."""
    source, gate = inputs
    native.fitting(isinstance(source, Tensor) and isinstance(gate, Tensor))
    assert isinstance(source, Tensor)
    assert isinstance(gate, Tensor)
    batch = max(len(source), len(gate))
    return Gated(_on_whole_box(source, batch), gate.flatten(1).float().contiguous().expand(batch, -1))


def whole_box(height: int, width: int) -> Box:
    return Box(Interval(0, height), Interval(0, width))


def _terms(node: Node) -> tuple[Term, ...]:
    return node.epilogue.terms if node.epilogue else (Term(-1),)


def _shifts(node: Node, weight: Weight) -> Tensor:
    """(C,): what is added besides the inputs, the bias of a convolution among it."""
    total = torch.zeros(node.shape[0], dtype=torch.float64)
    for term in _terms(node):
        if term.input < 0 and "bias" in node.weights:
            bias = weight(node.weights["bias"]).double()
            total += bias * weight(term.scale).double() if term.scale else bias
        if term.shift:
            total += weight(term.shift).double()
    return total.float()


def _on_whole_box(value: Tensor | Gated, batch: int) -> Any:
    """A whole value as a kernel reads it. What PyTorch computed may lie in any memory."""
    if isinstance(value, Gated):
        return value
    native.fitting(value.dim() == 4)
    if value.dtype != torch.float32 or (value.stride(1) != 1 and value.shape[1] > 1):
        value = value.float().contiguous(memory_format=torch.channels_last)
    return Delta(value.expand(batch, -1, -1, -1), 0, 0, whole_box(*value.shape[2:]))
