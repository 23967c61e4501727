"""Elementwise functions: one table row each. Their delta rule is f(b + Δ) − f(b), whatever they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from krypton.errors import PlanError, unknown
from krypton.ir.graph import Function


@dataclass(frozen=True)
class FunctionSpec:
    """`evaluate(x, *parameters)`; `lift` turns the ATen call's further arguments into parameters, None: not ours."""

    evaluate: Callable[..., Tensor]
    targets: tuple[str, ...]
    lift: Callable[..., tuple[float, ...] | None] = lambda: ()


_LARGEST = 3.4028234663852886e38  # of float32: an absent bound of clamp


def _clamp(low: float | None = None, high: float | None = None) -> tuple[float, ...]:
    return (-_LARGEST if low is None else float(low), _LARGEST if high is None else float(high))


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> tuple[float, ...] | None:
    return (float(alpha),) if scale == 1 and input_scale == 1 else None


FUNCTIONS: dict[str, FunctionSpec] = {
    "relu": FunctionSpec(torch.relu, ("aten.relu.default",)),
    "clamp": FunctionSpec(
        lambda x, low, high: torch.clamp(x, low, high),
        ("aten.clamp.default", "aten.hardtanh.default", "aten.relu6.default"),
        _clamp,
    ),
    "silu": FunctionSpec(F.silu, ("aten.silu.default",)),
    "hardswish": FunctionSpec(F.hardswish, ("aten.hardswish.default",)),
    "hardsigmoid": FunctionSpec(F.hardsigmoid, ("aten.hardsigmoid.default",)),
    "sigmoid": FunctionSpec(torch.sigmoid, ("aten.sigmoid.default",)),
    "tanh": FunctionSpec(torch.tanh, ("aten.tanh.default",)),
    "gelu": FunctionSpec(F.gelu, ("aten.gelu.default",), lambda approximate="none": () if approximate == "none" else None),
    "gelu_tanh": FunctionSpec(
        lambda x: F.gelu(x, approximate="tanh"),
        ("aten.gelu.default",),
        lambda approximate="none": () if approximate == "tanh" else None,
    ),
    "leaky_relu": FunctionSpec(
        lambda x, slope: F.leaky_relu(x, slope), ("aten.leaky_relu.default",), lambda slope=0.01: (float(slope),)
    ),
    "elu": FunctionSpec(lambda x, alpha: F.elu(x, alpha), ("aten.elu.default",), _elu),
    "selu": FunctionSpec(F.selu, ("aten.selu.default",)),
    "mish": FunctionSpec(F.mish, ("aten.mish.default",)),
    "softplus": FunctionSpec(
        lambda x, beta, threshold: F.softplus(x, beta, threshold),
        ("aten.softplus.default",),
        lambda beta=1.0, threshold=20.0: (float(beta), float(threshold)),
    ),
    "exp": FunctionSpec(torch.exp, ("aten.exp.default",)),
    "sqrt": FunctionSpec(torch.sqrt, ("aten.sqrt.default",)),
    "abs": FunctionSpec(torch.abs, ("aten.abs.default",)),
    "log_sigmoid": FunctionSpec(F.logsigmoid, ("aten.log_sigmoid.default",)),
}


def evaluate(function: Function | None, x: Tensor) -> Tensor:
    """The function's value; None is the identity. PlanError for a function that is not in the table."""
    if function is None:
        return x
    if function.name not in FUNCTIONS:
        raise PlanError(unknown("function", function.name, FUNCTIONS))
    return FUNCTIONS[function.name].evaluate(x, *function.parameters)
