"""From an exported ATen graph to the logical graph: constants folded, layouts tracked, calls lifted to operators.

Maps are (C, H, W) in the logical graph whatever the model does: where it holds them as (B, H, W, C), permutes vanish here and
operators lift their calls knowing the layout. What no operator lifts stays, as the original call, opaque.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from krypton.errors import CaptureError
from krypton.ir.graph import Epilogue, Graph, Node
from krypton.ir.weights import Reference, WeightStore
from krypton.operators.base import BY_TARGET, Call, Input, Operator
from krypton.operators.opaque import encode
from krypton.planner.patterns import IDENTITIES, channel_pieces, response_norm, selected_channel, shuffle_groups

NHWC = (0, 2, 3, 1)
NCHW = (0, 3, 1, 2)


class _Value:
    """What an fx node stands for: a logical node, in the model's layout; or several, of a call that returns a tuple."""

    def __init__(self, node: int, nhwc: bool = False, batched: bool = True, parts: Sequence[int | None] | None = None) -> None:
        self.node = node
        self.nhwc = nhwc
        self.batched = batched
        self.parts = parts


def recognise(program: ExportedProgram, input_shape: tuple[int, int, int], store: WeightStore) -> Graph:
    """The logical graph of an exported program with one image input and one output (batch, K)."""
    return _Recogniser(program, input_shape, store).run()


class _Recogniser:
    def __init__(self, program: ExportedProgram, input_shape: tuple[int, int, int], store: WeightStore) -> None:
        self.program = program
        self.weights = store
        self.nodes: list[Node] = [Node(0, "image", (), input_shape)]
        self.constants: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, _Value] = {}
        self.module = ""
        self.batch_symbol = ""

    # what operators' lifting uses (the Builder protocol)

    def add(
        self,
        op: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        attrs: Mapping[str, Any] | None = None,
        weights: Mapping[str, Tensor] | None = None,
        epilogue: Epilogue | None = None,
    ) -> int:
        keep = self.weights.add if op == "opaque" else self.store  # an opaque call gets just what the model gave it
        stored = {name: keep(tensor) for name, tensor in (weights or {}).items()}
        sources = tuple(int(source) for source in inputs)
        node = Node(len(self.nodes), op, sources, tuple(shape), dict(attrs or {}), stored, self.module, epilogue)
        self.nodes.append(node)
        return node.id

    def node(self, node_id: int) -> Node:
        return self.nodes[node_id]

    def store(self, tensor: Tensor) -> Reference:
        tensor = tensor.detach()
        return self.weights.add(tensor.float() if tensor.is_floating_point() else tensor)

    # the walk

    def run(self) -> Graph:
        self._bind_inputs()
        output: fx.Node | None = None
        for fx_node in self.program.graph_module.graph.nodes:
            if fx_node.op == "call_function":
                self.module = _module_name(fx_node)
                self._visit(fx_node)
            elif fx_node.op == "output":
                output = fx_node.args[0][-1] if len(fx_node.args[0]) == 1 else None
        if output is None or output not in self.values:
            raise CaptureError("a model must have one output, computed from the image: (batch, outputs)")
        result = self._plain(output)
        if len(self.nodes[result].shape) != 1 or not self.values[output].batched:
            raise CaptureError(
                f"a model must give one tensor (batch, outputs) for a batch of images, not "
                f"(batch, {', '.join(map(str, self.nodes[result].shape))}): wrap it"
            )
        return Graph(tuple(self.nodes), result).without_dead()

    def _bind_inputs(self) -> None:
        state = {**self.program.state_dict, **self.program.constants}
        kinds = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        images = 0
        for fx_node in self.program.graph_module.graph.nodes:
            if fx_node.op != "placeholder":
                continue
            spec = kinds[fx_node.name]
            if spec.kind == InputKind.USER_INPUT:
                images += 1
                self.values[fx_node] = _Value(0)
                self.batch_symbol = str(fx_node.meta["val"].shape[0])
            elif spec.target in state:
                self.constants[fx_node] = state[spec.target]
            else:
                raise CaptureError(f"the exported program does not carry its {spec.kind.name.lower()} {spec.target!r}")
        if images != 1:
            raise CaptureError(f"a model must take one tensor, the batch of images; this one takes {images}")

    def _visit(self, fx_node: fx.Node) -> None:
        target = _target_name(fx_node.target)
        if target == "aten.sym_size.int" and self._is_batch_size(fx_node):
            self.values[fx_node] = _Value(self.add("batch_size", (), ()), batched=False)
            return
        inputs = fx_node.all_input_nodes
        if all(source in self.constants for source in inputs) and inputs:
            self.constants[fx_node] = self._evaluate(fx_node)
            return
        if not inputs:  # a factory: zeros, arange
            self.constants[fx_node] = self._evaluate(fx_node)
            return
        if target == "operator.getitem" and self._take_part(fx_node):
            return
        if (
            self._layout(fx_node, target)
            or self._pattern(fx_node)
            or self._pieces(fx_node, target)
            or self._lift(fx_node, target)
        ):
            return
        self._keep_opaque(fx_node, target)

    def _is_batch_size(self, fx_node: fx.Node) -> bool:
        return str(fx_node.meta.get("val")) == self.batch_symbol

    def _evaluate(self, fx_node: fx.Node) -> Any:
        def constant(argument: fx.Node) -> Any:
            return self.constants[argument]

        args = fx.node.map_arg(fx_node.args, constant)
        kwargs = fx.node.map_arg(fx_node.kwargs, constant)
        assert callable(fx_node.target)
        return fx_node.target(*args, **kwargs)

    def _take_part(self, fx_node: fx.Node) -> bool:
        source, index = fx_node.args
        assert isinstance(source, fx.Node)
        value = self.values[source]
        if value.parts is None:
            return False
        part = value.parts[index]  # type: ignore[index]
        if part is None:
            raise CaptureError(f"the model uses an unusual result of {source.target}")
        self.values[fx_node] = _Value(part, value.nhwc)
        return True

    def _layout(self, fx_node: fx.Node, target: str) -> bool:
        """Identities and permutes between (B, C, H, W) and (B, H, W, C): no node at all."""
        source = fx_node.args[0] if fx_node.args else None
        value = self.values.get(source) if isinstance(source, fx.Node) else None
        if value is None or value.parts is not None or not value.batched:
            return False
        if target in IDENTITIES:
            self.values[fx_node] = value
            return True
        if target == "aten.permute.default" and len(self.nodes[value.node].shape) == 3:
            order = tuple(int(d) % 4 for d in fx_node.args[1])  # type: ignore[union-attr,arg-type]
            if order == (NCHW if value.nhwc else NHWC):
                self.values[fx_node] = _Value(value.node, not value.nhwc)
                return True
        return False

    def _pattern(self, fx_node: fx.Node) -> bool:
        """Several calls that are one operator; those in between die when nothing else reads them."""
        shuffle, norm, channel = shuffle_groups(fx_node), response_norm(fx_node), selected_channel(fx_node)
        found: tuple[fx.Node, str, Mapping[str, float]] | None
        found = (shuffle[0], "channel_shuffle", {"groups": shuffle[1]}) if shuffle else None
        found = (norm[0], "local_response_norm", norm[1]) if norm else found
        found = (channel[0], "channel_slice", {"start": channel[1], "stop": channel[1] + 1}) if channel else found
        value = self.values.get(found[0]) if found else None
        if found is None or value is None or not value.batched or value.nhwc or len(self.nodes[value.node].shape) != 3:
            return False
        (_, op, attrs), (shape, _) = found, self._result_shape(fx_node)
        assert shape is not None
        self.values[fx_node] = _Value(self.add(op, (value.node,), shape, attrs=attrs))
        return True

    def _pieces(self, fx_node: fx.Node, target: str) -> bool:
        """Splits and chunks over channels: a slice for every piece."""
        source = fx_node.args[0] if fx_node.args else None
        value = self.values.get(source) if isinstance(source, fx.Node) else None
        if value is None or value.parts is not None or value.nhwc or not value.batched:
            return False
        shape = self.nodes[value.node].shape
        bounds = channel_pieces(fx_node, target, shape)
        if bounds is None:
            return False
        slices = [
            self.add("channel_slice", (value.node,), (stop - start, *shape[1:]), attrs={"start": start, "stop": stop})
            for start, stop in bounds
        ]
        self.values[fx_node] = _Value(slices[0], parts=slices)
        return True

    def _lift(self, fx_node: fx.Node, target: str) -> bool:
        shape, batched = self._result_shape(fx_node)
        if shape is None or not batched or any(not value.batched for value in self._inputs(fx_node) if not self._sizes(value)):
            return False
        if not all(_is_float32(part) for part in (fx_node, *fx_node.all_input_nodes) if part not in self.constants):
            return False
        operators = BY_TARGET.get(target, ())
        nhwc = {value.nhwc for value in self._inputs(fx_node) if len(self.nodes[value.node].shape) == 3}
        for operator in operators:
            if any(value.parts is not None for value in self._inputs(fx_node)):
                return False
            in_nhwc = nhwc == {True} and operator.nhwc
            if True in nhwc and not in_nhwc:
                continue
            lifted = self._try(operator, fx_node, target, shape, in_nhwc)
            if lifted is not None:
                several = isinstance(fx_node.meta.get("val"), (tuple, list))
                spatial = len(self.nodes[lifted].shape) == 3
                self.values[fx_node] = _Value(lifted, in_nhwc and spatial, parts=(lifted, None, None) if several else None)
                return True
        return False

    def _try(self, operator: Operator, fx_node: fx.Node, target: str, shape: tuple[int, ...], nhwc: bool) -> int | None:
        canonical = (shape[2], shape[0], shape[1]) if nhwc and len(shape) == 3 else shape

        def value(argument: fx.Node) -> Any:
            if argument in self.constants:
                return self.constants[argument]
            return Input(self.values[argument].node)

        before = len(self.nodes)
        lifted = operator.lift(Call(target, _named(fx_node, value), canonical, nhwc), self)
        if lifted is None:
            del self.nodes[before:]
        return lifted

    def _keep_opaque(self, fx_node: fx.Node, target: str) -> None:
        shape, batched = self._result_shape(fx_node)
        inputs: list[int] = []
        weights: dict[str, Tensor] = {}

        def value(argument: fx.Node) -> Any:
            return self.constants[argument] if argument in self.constants else Input(self._plain(argument))

        arguments = fx.node.map_arg((fx_node.args, fx_node.kwargs), value)
        try:
            args = encode(list(arguments[0]), inputs, weights, lambda v: isinstance(v, Input))
            kwargs = {name: encode(v, inputs, weights, lambda v: isinstance(v, Input)) for name, v in arguments[1].items()}
        except TypeError as error:
            raise CaptureError(f"{target} at {self.module or 'the top of the model'}: {error}") from None
        attrs = {"target": target, "args": args, "kwargs": kwargs}
        made = self.add("opaque", inputs, shape or (), attrs=attrs, weights=weights)
        several = isinstance(fx_node.meta.get("val"), (tuple, list))
        self.values[fx_node] = _Value(made, batched=batched and not several)

    # help

    def _plain(self, fx_node: fx.Node) -> int:
        """The node of a value in the layout that the model has it in."""
        value = self.values[fx_node]
        if value.parts is not None:
            raise CaptureError(f"the model uses the results of {fx_node.target} in an unusual way")
        if not value.nhwc:
            return value.node
        channels, height, width = self.nodes[value.node].shape
        attrs = {"target": "aten.permute.default", "args": [{"input": 0}, list(NHWC)], "kwargs": {}}
        return self.add("opaque", (value.node,), (height, width, channels), attrs=attrs)

    def _inputs(self, fx_node: fx.Node) -> list[_Value]:
        return [self.values[source] for source in fx_node.all_input_nodes if source in self.values]

    def _sizes(self, value: _Value) -> bool:
        return self.nodes[value.node].op == "batch_size"

    def _result_shape(self, fx_node: fx.Node) -> tuple[tuple[int, ...] | None, bool]:
        """The shape without the batch axis, and whether the first axis is the batch."""
        result = fx_node.meta.get("val")
        if isinstance(result, (tuple, list)):
            result = result[0] if result and isinstance(result[0], Tensor) else None
        if not isinstance(result, Tensor) or result.dim() == 0:
            return None, False
        batched = str(result.shape[0]) == self.batch_symbol
        if any(not isinstance(size, int) for size in result.shape[1:]):
            return tuple(size if isinstance(size, int) else -1 for size in result.shape[1:]), False
        return tuple(int(size) for size in result.shape[1:]), batched


def _target_name(target: object) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"operator.{getattr(target, '__name__', target)}"


def _is_float32(fx_node: fx.Node) -> bool:
    result = fx_node.meta.get("val")
    first = result[0] if isinstance(result, (tuple, list)) and result else result
    return not isinstance(first, Tensor) or first.dtype == torch.float32


def _module_name(fx_node: fx.Node) -> str:
    stack = fx_node.meta.get("nn_module_stack") or {}
    names = [str(path) for path, _ in stack.values()]
    return names[-1].removeprefix("L['self'].") if names else ""


def _named(fx_node: fx.Node, value: Any) -> dict[str, Any]:
    """A call's arguments by the names of the operator's schema."""
    args = fx.node.map_arg(fx_node.args, value)
    kwargs = fx.node.map_arg(fx_node.kwargs, value)
    if not isinstance(fx_node.target, torch._ops.OpOverload):
        return {str(place): argument for place, argument in enumerate(args)}
    names = [argument.name for argument in fx_node.target._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}
