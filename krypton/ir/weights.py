"""Weights by content: plans name tensors by the hash of their bytes, a `WeightStore` turns names back into tensors.

A reference is `sha256:<hex>` for a stored tensor, or `function(reference, ...)` for one derived from others, so that a plan
with folded weights needs no more than the weights of the model itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from krypton.errors import PlanError

Reference = str
T = TypeVar("T")


def content_hash(tensor: Tensor) -> str:
    """`sha256:<40 hex digits>` of dtype, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    if data.numel():
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()[:40]}"


def _scale_rows(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale.reshape(-1, *([1] * (weight.dim() - 1)))


DERIVATIONS: dict[str, Callable[..., Tensor]] = {
    "scale_rows": _scale_rows,  # weight (K, ...), scale (K,): each output channel scaled
    "multiply": torch.mul,
    "add": torch.add,
    "ones_like": torch.ones_like,
    "convolve": lambda weight, x: weight.sum((2, 3)) @ x,  # weight (K, C, h, w), x (C,): of a map that is x everywhere
    "multiply_add": lambda x, scale, shift: x * scale + shift,
}


def derived(function: str, *references: Reference) -> Reference:
    """The reference of a tensor computed from others; `function` is a key of `DERIVATIONS`."""
    if function not in DERIVATIONS:
        raise PlanError(f"unknown weight derivation {function!r}")
    return f"{function}({','.join(references)})"


class WeightStore:
    """Tensors by reference; derived ones are computed at first use and kept."""

    def __init__(self, tensors: dict[Reference, Tensor] | None = None) -> None:
        self._tensors: dict[Reference, Tensor] = dict(tensors or {})
        self._derived: dict[Reference, Tensor] = {}
        self._prepared: dict[Hashable, Any] = {}

    def prepared(self, key: Hashable, make: Callable[[], T]) -> T:
        """Something made of these weights (a kernel with its own layout of them), made once and kept with them."""
        if key not in self._prepared:
            self._prepared[key] = make()
        made: T = self._prepared[key]
        return made

    @property
    def is_prepared(self) -> bool:
        """Whether kernels have laid out weights already."""
        return bool(self._prepared)

    def add(self, tensor: Tensor) -> Reference:
        """Store a tensor; equal contents are kept once."""
        reference = content_hash(tensor)
        self._tensors.setdefault(reference, tensor.detach())
        return reference

    def get(self, reference: Reference) -> Tensor:
        """The tensor of a reference; raises PlanError when its content is not here."""
        if "(" not in reference:
            if reference not in self._tensors:
                raise PlanError(f"the plan needs weights {reference} that were not given: load the same model first")
            return self._tensors[reference]
        if reference not in self._derived:
            function, arguments = _split(reference)
            self._derived[reference] = DERIVATIONS[function](*(self.get(argument) for argument in arguments))
        return self._derived[reference]

    def restrict(self, references: Iterable[Reference]) -> WeightStore:
        """A store with just what these references need."""
        stored = {leaf for reference in references for leaf in leaves(reference)}
        return WeightStore({leaf: self.get(leaf) for leaf in stored})

    def on(self, device: torch.device) -> WeightStore:
        """A store with the same tensors, all on one device, so that any may be derived from any; this one if they are there."""
        moved = {reference: tensor.to(device) for reference, tensor in self._tensors.items()}
        return self if all(moved[name] is tensor for name, tensor in self._tensors.items()) else WeightStore(moved)

    def __len__(self) -> int:
        return len(self._tensors)

    def save(self, path: str | Path) -> None:
        """Write the stored tensors as safetensors, whole or not at all."""
        target = Path(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        # clone: safetensors refuses tensors that share storage, as views of one parameter do
        save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in self._tensors.items()}, temporary)
        os.replace(temporary, target)

    @classmethod
    def load(cls, path: str | Path) -> WeightStore:
        return cls(load_file(str(path)))


def leaves(reference: Reference) -> list[Reference]:
    """The stored references that a reference is made of."""
    if "(" not in reference:
        return [reference]
    return [leaf for argument in _split(reference)[1] for leaf in leaves(argument)]


def _split(reference: Reference) -> tuple[str, list[Reference]]:
    function, _, rest = reference.partition("(")
    if function not in DERIVATIONS or not rest.endswith(")"):
        raise PlanError(f"malformed weight reference {reference!r}")
    arguments, depth, start = [], 0, 0
    inner = rest[:-1]
    for place, character in enumerate(inner):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            arguments.append(inner[start:place])
            start = place + 1
    arguments.append(inner[start:])
    return function, arguments
