"""What full inference by PyTorch costs, operator by operator: of base views, and of every occluded image in naive mode.

An `Inference` is made of a graph (`of_graph`), or by watching the model itself on one image (`watch`), which needs no capture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from krypton.errors import CaptureError
from krypton.ir.graph import Graph, Node
from krypton.operators.base import operator_of
from krypton.planner.cost import BYTES, DeviceProfile, matrix_shape, whole_box
from krypton.planner.profile import Shape
from krypton.planner.quiet import quiet
from krypton.planner.trials import evaluating

_KERNEL = "onednn"  # what PyTorch's convolutions are


@dataclass(frozen=True)
class Operation:
    """One operator on one image: multiply-adds, bytes of values and of weights moved; of a convolution the product's shape."""

    multiply_adds: int
    value_bytes: int
    weight_bytes: int = 0
    convolution: Shape | None = None

    def milliseconds(self, batch: int, profile: DeviceProfile) -> float:
        """On a batch of images. Measured rates of convolutions contain their memory traffic."""
        if self.convolution is not None:
            depth, columns, rows = self.convolution
            rate = profile.rate(_KERNEL, Shape(depth, columns, rows * batch))
            return self.multiply_adds * batch / rate + profile.node_overhead_ms
        moved = self.value_bytes * batch + self.weight_bytes
        arithmetic = self.multiply_adds * batch / profile.multiply_adds_per_ms
        return arithmetic + moved / profile.bytes_per_ms + profile.node_overhead_ms


@dataclass(frozen=True)
class Inference:
    """All operators of a model; `peak_bytes` of values are alive at the same time, per image."""

    operations: tuple[Operation, ...]
    peak_bytes: int = 0

    @property
    def multiply_adds(self) -> int:
        """Per image."""
        return sum(operation.multiply_adds for operation in self.operations)

    def milliseconds(self, batch: int, profile: DeviceProfile) -> float:
        """Of one batch."""
        return sum(operation.milliseconds(batch, profile) for operation in self.operations)


def of_graph(graph: Graph) -> Inference:
    """Inference as the nodes of a graph run on whole values, each ending in passes of its own."""
    nodes = graph.index()
    found: list[Operation] = []
    for node in graph:
        if node.op != "image" and node.mode != "once":
            found += _of_node(node, nodes)
    return Inference(tuple(found))


def _of_node(node: Node, nodes: Mapping[int, Node]) -> list[Operation]:
    box, operator = whole_box(node), operator_of(node)
    size = math.prod(node.shape) * BYTES
    found = []
    if node.op != "combine":
        arity = len(node.inputs) if operator.arity is None else operator.arity
        read = sum(math.prod(nodes[source].shape) for source in node.inputs[:arity]) * BYTES
        multiply_adds = operator.multiply_adds(node, box.rows.size, box.columns.size)
        weights = operator.multiply_adds(node, 1, 1) * BYTES
        found.append(Operation(multiply_adds, read + size, weights, matrix_shape(node, box, 1) if node.op == "conv" else None))
    if node.epilogue is not None:
        terms = node.epilogue.terms
        passes = [2 for term in terms if term.scale or term.shift] + [3] * (len(terms) - 1)
        passes += [2] if node.epilogue.function else []
        found += [Operation(0, times * size) for times in passes]
    return found


def watch(module: nn.Module, image: Tensor) -> Inference:
    """Inference of a model as it runs, on an image (1, C, H, W) where it lives. Raises CaptureError when that fails."""
    try:
        with evaluating(module), quiet(), _Watch(module) as watched:
            module(image)
    except Exception as error:  # whatever the model's own code raises
        raise CaptureError(f"the operators of {type(module).__name__} cannot be watched: {error}") from error
    return Inference(tuple(watched.found), watched.peak)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every ATen call, and the bytes of values that are alive."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry  # imports triton, where there is one

        self._flops = flop_registry
        self.found: list[Operation] = []
        self.peak = 0
        self._weights = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        weights = sum(t.nbytes for t in read if t.data_ptr() in self._weights)
        values = sum(t.nbytes for t in (*read, *written)) - weights
        count = self._flops.get(func.overloadpacket)
        multiply_adds = int(count(*args, **kwargs, out_val=result)) // 2 if count is not None and written else 0
        self.found.append(Operation(multiply_adds, values, weights, self._product(func, args, written)))
        self._weigh(written)

    def _weigh(self, written: list[Tensor]) -> None:
        """The peak with these results; a value is freed when nobody holds its storage any more."""
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for tensor in written:
            reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._alive[reference.cdata] = reference, tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))

    def _product(self, func: Any, args: Any, written: list[Tensor]) -> Shape | None:
        """The matrix product that a two-dimensional convolution comes down to."""
        if func.overloadpacket is not torch.ops.aten.convolution or args[0].dim() != 4 or args[6]:
            return None
        weight, result = args[1], written[0]
        return Shape(weight.numel() // weight.shape[0], weight.shape[0], result.shape[2] * result.shape[3])
