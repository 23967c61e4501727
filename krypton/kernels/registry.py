"""The table of kernels. A new one is one `register_kernel` and its test against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krypton.errors import PlanError, unknown
from krypton.ir.graph import Node
from krypton.ir.weights import Reference

Runner = Callable[..., Any]


@dataclass(frozen=True)
class Kernel:
    """One way to run an operator's delta rule.

    `operator` is the operator served; "combine" kernels also run the epilogues of all others. `supports(node, device)` says
    whether it can; `build(node, weight)` prepares weights once and returns what the delta rule calls (see conv.py and
    fused.py for the signatures). Of the kernels that can, the one with the highest `priority` is chosen. `fused` ones run a
    node's ending, too, and read deltas on any window; those that `begins` also take a `Deferred` or `Gated` one. Only `exact`
    ones are used when exact answers are asked for.
    """

    name: str
    operator: str
    supports: Callable[[Node, torch.device], bool]
    build: Callable[[Node, Callable[[Reference], Tensor]], Runner]
    priority: int = 0
    fused: bool = False
    begins: bool = False
    exact: bool = True


KERNELS: list[Kernel] = []

DEFERRED = "deferred"
"""In place of a combine kernel's name: the node's only reader computes it."""


def register_kernel(kernel: Kernel) -> Kernel:
    """Make a kernel known; a later one of the same name and operator replaces the earlier."""
    KERNELS[:] = [k for k in KERNELS if (k.name, k.operator) != (kernel.name, kernel.operator)]
    KERNELS.append(kernel)
    return kernel


def choose(operator: str, node: Node, device: torch.device, *, reference: bool = False) -> str:
    """The name of the best kernel for a node, "" when the operator needs none."""
    able = [k for k in KERNELS if k.operator == operator and k.supports(node, device)]
    if reference:
        able = [k for k in able if k.name == "reference"]
    return max(able, key=lambda kernel: kernel.priority).name if able else ""


def find(operator: str, name: str) -> Kernel:
    """A kernel by name; PlanError when a plan names one that is not registered here."""
    for kernel in KERNELS:
        if (kernel.operator, kernel.name) == (operator, name):
            return kernel
    raise PlanError(unknown(f"kernel for {operator}", name, [k.name for k in KERNELS if k.operator == operator]))
