"""What an operator is: an `Operator` says everything that planner and executor need to know of one kind of node.

A new operator is one new file with a subclass, an `@register`, and its tests. `Tile` and `Call` are what operators see of the
executor and of capture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from krypton.errors import PlanError, unknown
from krypton.ir.delta import Box, Deferred, Delta, Gated
from krypton.ir.geometry import Interval, hull
from krypton.ir.graph import Epilogue, Node
from krypton.ir.weights import Reference

Axis = Literal[0, 1]
"""0: rows, 1: columns."""

ViewKind = Literal["out", "pre"]
"""Which base value is kept of a node: its result, or what its epilogue's function is applied to."""

ViewKey = tuple[int, ViewKind]

Value = Delta | Deferred | Gated | Tensor | None
"""In delta mode a `Delta` (`Deferred` or `Gated` where the planner says so), or None where nothing changed; in other modes a
tensor (B, *shape), or (1, *shape) for `once`."""


class Tile(Protocol):
    """One batch of occlusions, as delta rules see it: all deltas in the same boxes."""

    @property
    def batch(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def field(self, node: Node) -> Box: ...
    def target(self, node: Node) -> Delta: ...
    def placed(self, source: int, within: int, start: int) -> bool: ...
    def view(self, node: int, kind: ViewKind) -> Tensor: ...
    def weight(self, reference: Reference) -> Tensor: ...
    def kernel(self, node: Node) -> Callable[..., Any]: ...
    def fused(self, node: Node, source: Delta | Deferred | Gated, extra: Sequence[Delta | None]) -> Delta | None: ...
    def finish(self, node: Node, result: Delta | None, extra: Sequence[Delta | None]) -> Delta: ...


class Whole(Protocol):
    """One batch on whole values, as operators see it."""

    @property
    def batch(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def weight(self, reference: Reference) -> Tensor: ...


class Builder(Protocol):
    """What lifting may do to the graph under construction."""

    def add(
        self,
        op: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        attrs: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        epilogue: Epilogue | None = None,
    ) -> int: ...
    def node(self, node_id: int) -> Node: ...
    def store(self, tensor: Tensor) -> Reference: ...


class Call:
    """One ATen call being lifted: arguments by name, values as node ids, constants as tensors.

    `shape` is that of the result, (C, H, W) for maps. `nhwc`: the model itself holds its maps as (B, H, W, C) here.
    """

    def __init__(self, target: str, arguments: Mapping[str, Any], shape: tuple[int, ...], nhwc: bool = False) -> None:
        self.target = target
        self.arguments = arguments
        self.shape = shape
        self.nhwc = nhwc

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name)
        return default if value is None else value


class Input(int):
    """A node id among a call's arguments (numbers are plain ints)."""


class Operator:
    """One family of nodes. The defaults are those of an elementwise operator with no rule of its own."""

    name: str = ""
    targets: tuple[str, ...] = ()
    linear: bool = False
    reads: Literal["none", "field", "window"] = "none"
    nhwc: bool = False
    """Can lift calls on maps that the model holds as (B, H, W, C)."""
    arity: int | None = None
    """How many inputs the operator's own arithmetic takes, when its epilogue may have further ones; None: all."""

    def label(self, node: Node) -> str:
        """A few words for EXPLAIN, without the epilogue."""
        return self.name

    def lift(self, call: Call, build: Builder) -> int | None:
        """Turn an ATen call into nodes; None when the predicate does not hold, then it stays opaque."""
        return None

    def incremental(self, node: Node, changed: Sequence[bool]) -> bool:
        """Has this node a delta rule, when these of its inputs are deltas? The others do not depend on the image."""
        return False

    def result_mode(self, node: Node) -> Literal["delta", "project"]:
        """`project` when the delta rule yields a whole value."""
        return "delta"

    def field(self, node: Node, axis: Axis, changed: Sequence[Interval]) -> Interval:
        """Where the output can change, from where the inputs changed."""
        return hull(*changed)

    def centre(self, node: Node, axis: Axis) -> tuple[float, float]:
        """(a, b): an output o reads around a·o + b of the input."""
        return 1.0, 0.0

    def widens(self, node: Node) -> bool:
        """Reads an output several inputs of an axis, so that the field may grow?"""
        return False

    def read(self, node: Node, axis: Axis, outputs: Interval) -> Interval | None:
        """The window of the first input that it wants contiguous in memory; None when any layout will do."""
        return None

    def views(self, node: Node) -> list[ViewKey]:
        """Base values the delta rule reads, besides the epilogue's."""
        return []

    def delta(self, node: Node, inputs: Sequence[Value], tile: Tile) -> Value:
        """The delta rule, epilogue included (see `Tile.finish`)."""
        raise PlanError(f"operator {self.name!r} has no delta rule")

    def full(self, node: Node, inputs: Sequence[Tensor], whole: Whole) -> Tensor:
        """The whole result (B, *shape) of the operator's own arithmetic, from whole inputs; the epilogue comes after."""
        raise NotImplementedError(self.name)

    def multiply_adds(self, node: Node, rows: int, columns: int) -> int:
        """Multiply-adds per occlusion for an output of this many rows and columns (0 where memory decides)."""
        return 0


OPERATORS: dict[str, Operator] = {}
BY_TARGET: dict[str, list[Operator]] = {}


def register(operator: type[Operator]) -> type[Operator]:
    """Class decorator: make an operator known under its name and its ATen targets (later ones are asked first)."""
    instance = operator()
    OPERATORS[instance.name] = instance
    for target in instance.targets:
        BY_TARGET.setdefault(target, []).insert(0, instance)
    return operator


def operator_of(node: Node) -> Operator:
    """The operator of a node; PlanError for one that nobody registered."""
    found = OPERATORS.get(node.op)
    if found is None:
        raise PlanError(unknown("operator", node.op, OPERATORS))
    return found


def spatial_size(node: Node, axis: Axis) -> int:
    return node.shape[1 + axis]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An int or a list of one or two, as ATen writes sizes, as two ints."""
    if isinstance(value, int):
        return value, value
    items = [int(item) for item in value]
    return (items[0], items[0]) if len(items) == 1 else (items[0], items[1])


def channels_last(tensor: Tensor) -> Tensor:
    """The same tensor (B, C, h, w), channels innermost in memory."""
    return tensor.contiguous(memory_format=torch.channels_last)


def one_channel(tensor: Tensor) -> Tensor:
    """The same tensor (B, C, h, w); a single channel with the strides of its pixels, not of channels innermost.

    Both describe the same memory, but PyTorch's oneDNN convolution reads the latter wrongly when its result is one pixel wide.
    """
    return tensor.flatten(1).view(tensor.shape) if tensor.shape[1] == 1 else tensor
