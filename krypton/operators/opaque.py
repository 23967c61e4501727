"""Everything without a rule of its own: the original ATen call, on whole values. Plans say where it makes increments end.

attrs: target, args and kwargs as JSON, in which {"input": i} is the node's i-th input, {"weight": name} one of its weights and
{"torch": "float32"} an object of PyTorch.
"""

from __future__ import annotations

import functools
import operator as python_operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from krypton.errors import PlanError
from krypton.ir.graph import Node
from krypton.operators.base import Operator, Whole, register

PYTHON_OPERATORS = {
    name: getattr(python_operator, name)
    for name in (
        "getitem",
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "neg",
        "pow",
        "eq",
        "ge",
        "gt",
        "le",
        "lt",
    )
}


RELAXED = {"aten.view.default": "aten.reshape.default", "aten._unsafe_view.default": "aten.reshape.default"}
"""Calls that insist on a memory layout, which values need not have here, and what does the same on any layout."""


FEW = 8  # slices that are added one to the other


def _norm(x: Tensor, order: float = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Tensor:
    if order != 2 or not x.is_floating_point() or kwargs.get("dtype") is not None:
        same: Tensor = torch.linalg.vector_norm(x, order, dim, keepdim, **kwargs)
        return same
    return x.square().sum(dim, keepdim).sqrt()


def _sum(x: Tensor, dim: Any, keepdim: bool = False, **kwargs: Any) -> Tensor:
    few = len(dim or ()) == 1 and 0 < x.shape[dim[0]] <= FEW
    if keepdim or not few or not x.is_floating_point() or kwargs.get("dtype") is not None:
        return torch.sum(x, dim, keepdim, **kwargs)
    return functools.reduce(torch.add, x.unbind(dim[0]))


FASTER: dict[str, Callable[..., Tensor]] = {
    "aten.linalg_vector_norm.default": _norm,  # over the places of a map whose channels are innermost
    "aten.sum.dim_IntList": _sum,  # over a few slices (split attention)
}
"""What does the same as a call that PyTorch takes twice as long for, or more."""


def resolve(target: str) -> Callable[..., Any]:
    """`aten.softmax.int` or `operator.mul` as a callable. Only operators of PyTorch: a plan file cannot name anything else."""
    namespace, *path = RELAXED.get(target, target).split(".")
    if namespace == "operator" and len(path) == 1 and path[0] in PYTHON_OPERATORS:
        return PYTHON_OPERATORS[path[0]]  # type: ignore[no-any-return]
    try:
        found: Any = torch.ops
        for part in [namespace, *path]:
            if part.startswith("__"):
                raise AttributeError(part)
            found = getattr(found, part)
    except AttributeError:
        raise PlanError(f"the plan calls {target!r}, which this PyTorch {torch.__version__} does not have") from None
    if not isinstance(found, torch._ops.OpOverload):
        raise PlanError(f"the plan calls {target!r}, which is not an operator")
    if any(argument.name == "filename" for argument in found._schema.arguments):  # aten has a few that read and write files
        raise PlanError(f"the plan calls {target!r}, which works on files: that is not for plans")
    return found


def encode(value: Any, inputs: list[int], weights: dict[str, Tensor], is_input: Callable[[Any], bool]) -> Any:
    """An argument as JSON, collecting inputs and weights on the way; TypeError for what JSON cannot say."""
    if is_input(value):
        inputs.append(int(value))
        return {"input": len(inputs) - 1}
    if isinstance(value, Tensor):
        name = f"w{len(weights)}"
        weights[name] = value
        return {"weight": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [encode(item, inputs, weights, is_input) for item in value]
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": "of the query"}
    raise TypeError(f"cannot write {type(value).__name__} into a plan")


def decode(value: Any, inputs: Sequence[Any], weights: Mapping[str, Tensor], device: torch.device) -> Any:
    """The inverse of `encode`, with actual values in the places of inputs and weights."""
    if isinstance(value, list):
        return [decode(item, inputs, weights, device) for item in value]
    if not isinstance(value, dict):
        return value
    if "input" in value:
        return inputs[value["input"]]
    if "weight" in value:
        return weights[value["weight"]]
    if "device" in value:
        return device
    found = getattr(torch, str(value.get("torch")), None)
    if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
        raise PlanError(f"the plan names {value!r}, which is not of PyTorch")
    return found


@register
class Opaque(Operator):
    """See the module."""

    name = "opaque"

    def label(self, node: Node) -> str:
        return str(node.attrs["target"]).removeprefix("aten.").removesuffix(".default")

    def full(self, node: Node, inputs: Sequence[Any], whole: Whole) -> Any:
        # a batch size comes as a tensor of no dimensions; operators want it as a number
        values = [int(v) if isinstance(v, Tensor) and v.dim() == 0 and v.dtype == torch.int64 else v for v in inputs]
        weights = {name: whole.weight(reference) for name, reference in node.weights.items()}
        args = decode(node.attrs["args"], values, weights, whole.device)
        kwargs = {k: decode(v, values, weights, whole.device) for k, v in node.attrs["kwargs"].items()}
        target = node.attrs["target"]
        call: Callable[..., Any] = FASTER.get(target) or resolve(target)
        return call(*args, **kwargs)
