"""Nodes in mode full by the kernels of delta rules: a whole map is a delta on the whole box, and its ending is absolute.

A kernel that runs a node's ending needs nothing else for it: own bias, the shifts of all terms, scales, further terms and function are
one pass over what it computed, as in stock inference with fused convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval
from krypton.ir.graph import Node, Term
from krypton.ir.weights import Reference
from krypton.kernels import native
from krypton.kernels.registry import DEFERRED, KERNELS, Kernel

Weight = Callable[[Reference], Tensor]
WholeRunner = Callable[[Sequence[Tensor]], Tensor]
"""From a node's whole inputs (B, C, h, w), or (1, C, h, w), to its result (B, C, H, W), channels innermost."""


def choose_whole(node: Node, device: torch.device) -> str:
    """The name of the best kernel for a node in mode full, "" where PyTorch is to run it."""
    if not node.spatial or (node.op == "combine" and node.function is None and len(node.inputs) == 1):
        return ""  # vectors; and a mere scale is one pass in PyTorch, too
    able = [k for k in KERNELS if k.operator == node.op and k.fused and k.exact and k.supports(node, device)]
    return max(able, key=lambda kernel: kernel.priority).name if able else ""


def whole_kernel(node: Node) -> Kernel | None:
    """The kernel that a plan names for a node in mode full, if it can run one there."""
    if node.mode != "full" or not node.spatial or node.kernel in ("", DEFERRED):
        return None
    name = node.kernel.split("+")[0]
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

    def run(inputs: Sequence[Tensor]) -> Tensor:
        batch = max(len(value) for value in inputs)
        result = torch.empty((batch, *node.shape), memory_format=torch.channels_last)
        target = Delta(result, 0, 0, field)
        values = [_on_whole_box(value, batch) for value in inputs]
        added = [(values[place], scale) for place, scale in further]
        if node.op == "combine":
            runner(target, field, added, shifts)
        else:
            runner(target, field, values[0], own, added, shifts)
        return result

    return run


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


def _on_whole_box(value: Tensor, batch: int) -> Delta:
    """A whole value as a kernel reads it. What PyTorch computed may lie in any memory."""
    native.fitting(value.dim() == 4)
    if value.dtype != torch.float32 or (value.stride(1) != 1 and value.shape[1] > 1):
        value = value.float().contiguous(memory_format=torch.channels_last)
    return Delta(value.expand(batch, -1, -1, -1), 0, 0, whole_box(*value.shape[2:]))
