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
    node's ending, too, and read deltas on any window; those that `begins` also take a `Deferred` or `Gated` one, and what those
    that are `chained` build takes a `chain` to be part of (chain.py). `error` is the
    relative error of its results, 0 when it is float32's own; exact answers are made by those alone.
    `work(node, rows, columns)` are the multiplications it makes for one occlusion's output of that size; None: as many as the
    operator's multiply-adds.
    """

    name: str
    operator: str
    supports: Callable[[Node, torch.device], bool]
    build: Callable[[Node, Callable[[Reference], Tensor]], Runner]
    priority: int = 0
    fused: bool = False
    begins: bool = False
    chained: bool = False
    work: Callable[[Node, int, int], int] | None = None

    @property
    def exact(self) -> bool:
        return self.error == 0

    error: float = 0.0


KERNELS: list[Kernel] = []

DEFERRED = "deferred"
"""In place of a combine kernel's name: the node's only reader computes it."""


def register_kernel(kernel: Kernel) -> Kernel:
    """Make a kernel known; a later one of the same name and operator replaces the earlier."""
    KERNELS[:] = [k for k in KERNELS if (k.name, k.operator) != (kernel.name, kernel.operator)]
    KERNELS.append(kernel)
    return kernel


def able(operator: str, node: Node, device: torch.device, *, exact: bool = True) -> list[Kernel]:
    """The kernels that can run a node, those first that are usually the fastest."""
    found = [k for k in KERNELS if k.operator == operator and k.supports(node, device) and (k.exact or not exact)]
    return sorted(found, key=lambda kernel: -kernel.priority)


def choose(operator: str, node: Node, device: torch.device, *, reference: bool = False) -> str:
    """The name of the kernel that is usually best for a node, "" when the operator needs none."""
    found = [k for k in able(operator, node, device) if not reference or k.name == "reference"]
    return found[0].name if found else ""


def find(operator: str, name: str) -> Kernel:
    """A kernel by name; PlanError when a plan names one that is not registered here."""
    for kernel in KERNELS:
        if (kernel.operator, kernel.name) == (operator, name):
            return kernel
    raise PlanError(unknown(f"kernel for {operator}", name, [k.name for k in KERNELS if k.operator == operator]))
