"""Sums, per-channel scales and elementwise functions: `f(s1·x1 + t1 + s2·x2 + …)`, the node without arithmetic of its own.

Batch norm in eval mode, residual additions and activations are all of this kind; fuse_activation merges chains of them, and
hangs them onto convolutions as epilogues. Delta rule: f(b + Σ sᵢ·Δᵢ) − f(b), b the view before f.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from krypton.ir.graph import Epilogue, Function, Node, Term
from krypton.ir.weights import Reference
from krypton.operators.base import Builder, Call, Input, Operator, Tile, Value, Whole, register
from krypton.operators.functions import FUNCTIONS, evaluate


def per_channel(values: Tensor, dimensions: int) -> Tensor:
    """(C,) as it broadcasts against (B, C, ...) with that many dimensions in all."""
    return values.reshape(-1, *([1] * (dimensions - 2)))


def apply_epilogue(
    epilogue: Epilogue, own: Tensor | None, inputs: Sequence[Tensor], weight: Callable[[Reference], Tensor]
) -> tuple[Tensor, Tensor]:
    """On whole values: what the function is applied to, and its result."""
    total: Tensor | None = None
    for term in epilogue.terms:
        value = own if term.input < 0 else inputs[term.input]
        assert value is not None
        if term.scale:
            value = value * per_channel(weight(term.scale), value.dim())
        if term.shift:
            value = value + per_channel(weight(term.shift), value.dim())
        total = value if total is None else total + value
    assert total is not None
    return total, evaluate(epilogue.function, total)


def describe_epilogue(epilogue: Epilogue) -> list[str]:
    """The words that EXPLAIN shows for an epilogue, in order."""
    words = []
    if any(term.scale or term.shift for term in epilogue.terms):
        words.append("scale")
    if len(epilogue.terms) > 1:
        words.append("add")
    if epilogue.function:
        words.append(str(epilogue.function))
    return words


_FUNCTION_TARGETS = tuple(dict.fromkeys(target for spec in FUNCTIONS.values() for target in spec.targets))


@register
class Combine(Operator):
    """See the module."""

    name = "combine"
    targets = (
        "aten._native_batch_norm_legit_no_training.default",
        "aten.batch_norm.default",
        "aten.add.Tensor",
        "aten.add.Scalar",
        "aten.sub.Tensor",
        "aten.sub.Scalar",
        "aten.mul.Tensor",
        "aten.mul.Scalar",
        "aten.div.Tensor",
        "aten.div.Scalar",
        "aten.neg.default",
        "aten.rsub.Scalar",
        "aten.addcmul.default",
        "aten.dropout.default",
        "aten.feature_dropout.default",
        *_FUNCTION_TARGETS,
    )
    arity = 0
    reads = "field"
    nhwc = True

    def label(self, node: Node) -> str:
        assert node.epilogue is not None
        words = describe_epilogue(node.epilogue) or ["copy"]
        return " +".join(words)

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        return node.spatial

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        return tile.finish(node, None, inputs)  # type: ignore[arg-type]

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        raise AssertionError("a combine node is nothing but its epilogue")

    def lift(self, call: Call, build: Builder) -> int | None:
        if call.target.startswith(("aten._native_batch_norm", "aten.batch_norm")):
            return _lift_batch_norm(call, build)
        if "dropout" in call.target:
            source = call["input"]
            lifted = isinstance(source, Input) and not call["train"]
            return build.add("combine", (source,), call.shape, epilogue=Epilogue((Term(0),))) if lifted else None
        if call.target in _FUNCTION_TARGETS:
            return _lift_function(call, build)
        if call.target.startswith("aten.addcmul"):
            return _lift_addcmul(call, build)
        return _lift_arithmetic(call, build)


def _lift_function(call: Call, build: Builder) -> int | None:
    source, *rest = call.arguments.values()
    for name, spec in FUNCTIONS.items():
        if call.target not in spec.targets:
            continue
        parameters = _DEFAULTS.get(call.target, ()) or spec.lift(*rest)
        if parameters is not None and isinstance(source, Input):
            epilogue = Epilogue((Term(0),), Function(name, tuple(parameters)))
            return build.add("combine", (source,), call.shape, epilogue=epilogue)
    return None


_DEFAULTS = {"aten.relu6.default": (0.0, 6.0)}


def _lift_batch_norm(call: Call, build: Builder) -> int | None:
    mean, variance = call.get("running_mean"), call.get("running_var")
    if mean is None or variance is None or call.get("training", False) or call.get("cudnn_training", False):
        return None
    scale = torch.rsqrt(variance.double() + float(call["eps"]))
    if (gamma := call.get("weight")) is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if (beta := call.get("bias")) is not None:
        shift = shift + beta.double()
    return _affine(call, build, call["input"], scale, shift)


def _affine(call: Call, build: Builder, source: Input, scale: Tensor | None, shift: Tensor | None) -> int:
    term = Term(
        0,
        None if scale is None else build.store(scale.float().contiguous()),
        None if shift is None else build.store(shift.float().contiguous()),
    )
    return build.add("combine", (source,), call.shape, epilogue=Epilogue((term,)))


def _lift_arithmetic(call: Call, build: Builder) -> int | None:
    operation = call.target.split(".")[1]
    if not call.shape:  # one number per image
        return None
    left = call.get("self", call.get("input"))
    if operation == "neg":
        return _affine(call, build, left, -_ones(call), None) if isinstance(left, Input) else None
    right, alpha = call.arguments.get("other"), float(call.get("alpha", 1))
    if operation == "rsub":
        constant = _channels(right, call)
        return (
            None
            if constant is None or not isinstance(left, Input)
            else _affine(call, build, left, -alpha * _ones(call), constant)
        )
    if operation == "div" and call.get("rounding_mode") is not None:
        return None
    if isinstance(left, Input) and isinstance(right, Input):
        return _lift_two(operation, left, right, alpha, call, build)
    source, other = (left, right) if isinstance(left, Input) else (right, left)
    if not isinstance(source, Input):
        return None
    constant = _channels(other, call)
    if build.node(source).shape != call.shape:
        return None
    if constant is None:
        return _lift_map(operation, source, other, alpha, source is left, call, build)
    if operation == "mul":
        return _affine(call, build, source, constant, None)
    if operation == "div":
        return _affine(call, build, source, 1.0 / constant.double(), None) if source is left else None
    if operation == "add":
        # alpha belongs to the right operand, whichever that is
        return (
            _affine(call, build, source, None, alpha * constant)
            if source is left
            else _affine(call, build, source, None if alpha == 1 else alpha * _ones(call), constant)
        )
    if source is left:
        return _affine(call, build, source, None, -alpha * constant)
    return _affine(call, build, source, -alpha * _ones(call), constant)


def _lift_addcmul(call: Call, build: Builder) -> int | None:
    """shift + scale·x as one call."""
    sides = call["tensor1"], call["tensor2"]
    source, factor = sides if isinstance(sides[0], Input) else sides[::-1]
    shift, scale = _channels(call["self"], call), _channels(factor, call)
    if not isinstance(source, Input) or shift is None or scale is None or build.node(source).shape != call.shape:
        return None
    return _affine(call, build, source, float(call.get("value", 1)) * scale, shift)


def _lift_two(operation: str, left: Input, right: Input, alpha: float, call: Call, build: Builder) -> int | None:
    if operation not in ("add", "sub") or not build.node(left).shape == build.node(right).shape == call.shape:
        return None
    factor = alpha if operation == "add" else -alpha
    scale = None if factor == 1 else build.store(factor * _ones(call))
    epilogue = Epilogue((Term(0), Term(1, scale)))
    return build.add("combine", (left, right), call.shape, epilogue=epilogue)


def _lift_map(
    operation: str, source: Input, other: object, alpha: float, on_left: bool, call: Call, build: Builder
) -> int | None:
    """Adding a constant that varies over the map (a learned position, say): a term that never changes."""
    if operation != "add" or alpha != 1 or not isinstance(other, Tensor) or call.nhwc or len(call.shape) != 3:
        return None
    constant = build.add("constant", (), call.shape, weights={"value": other.expand(1, *call.shape)[0].contiguous()})
    return build.add("combine", (source, constant), call.shape, epilogue=Epilogue((Term(0), Term(1))))


def _ones(call: Call) -> Tensor:
    return torch.ones(call.shape[0])


def _channels(value: object, call: Call) -> Tensor | None:
    """A number, or a tensor that varies over channels only, as (C,); None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, Input):
        return value * _ones(call)
    if not isinstance(value, Tensor) or not call.shape:
        return None
    if value.numel() == 1:
        return value.float().reshape(1).expand(call.shape[0])
    rank, axis = len(call.shape) + 1, -1 if call.nhwc or len(call.shape) == 1 else 1
    shape = (1,) * (rank - value.dim()) + tuple(value.shape)
    if len(shape) != rank or shape[axis] != call.shape[0] or value.numel() != call.shape[0]:
        return None
    return value.reshape(-1).float()
