"""One tile at work: what delta rules see while a batch of occlusions runs through the trunk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from krypton.errors import ExecutionError
from krypton.ir.delta import Box, Deferred, Delta, Gated
from krypton.ir.graph import Node
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.weights import Reference
from krypton.kernels.chain import Chain
from krypton.operators.base import ViewKind

if TYPE_CHECKING:
    from krypton.executor.program import Program

DEBUG_TOLERANCE = 1e-3


class RunningTile:
    """Implements `operators.base.Tile`."""

    def __init__(self, program: Program, batch: int, tile: OcclusionTile) -> None:
        self.batch = batch
        self.device = program.device
        self.recorded: list[tuple[Node, Delta]] = []
        self._program = program
        self._rows = program.fields.axis(0, tile.rows)
        self._columns = program.fields.axis(1, tile.columns)
        self._own = program.own_fields.of(tile)
        self._buffers: dict[int, Tensor] = {}
        self._chain: Chain | None = None
        self._between: set[int] = set()  # nodes of the chain whose values are for the next one alone

    def field(self, node: Node) -> Box:
        return Box(self._rows[node.id].field, self._columns[node.id].field)

    def _window(self, node: Node) -> Box:
        return Box(self._rows[node.id].stored, self._columns[node.id].stored)

    def target(self, node: Node) -> Delta:
        """Where a node's delta is to be written, uninitialised: its own memory, or its slice of a concat's buffer."""
        rows, columns = window = self._window(node)
        places = self._program.fields.places
        root, start = places.get(node.id, (node.id, 0))
        if node.op == "concat" or node.id in places:
            if root not in self._buffers:
                self._buffers[root] = self._empty(self._program.nodes[root].shape[0], window)
            buffer = self._buffers[root][:, start : start + node.shape[0]]
        elif self._chain is not None and node.id in self._between:
            buffer = self._chain.slot(node.shape[0], rows.size, columns.size)
        else:
            buffer = self._empty(node.shape[0], window)
        return Delta(buffer, rows.start, columns.start, self.field(node), fields=self.own_fields(node))

    @contextlib.contextmanager
    def chained(self, nodes: Sequence[Node]) -> Iterator[Chain]:
        """Within this, the convolutions of these nodes are noted in a chain instead of running."""
        between = nodes[:-1]
        windows = [self._window(node) for node in between]
        shapes = [(n.shape[0], w.rows.size, w.columns.size) for n, w in zip(between, windows, strict=True)]
        self._chain, self._between = Chain(self.batch, shapes), {node.id for node in between}
        try:
            yield self._chain
        finally:
            self._chain, self._between = None, set()

    def own_fields(self, node: Node) -> Tensor:
        """(B, 4) int64: rows and columns of the field of each occlusion."""
        return self._own[node.id]

    def placed(self, source: int, concat: int, start: int) -> bool:
        """Was this input of a concat written straight into its channels, from `start` on, of the concat's buffer?"""
        places = self._program.fields.places
        root, first = places.get(concat, (concat, 0))
        return places.get(source) == (root, first + start)

    def _empty(self, channels: int, window: Box) -> Tensor:
        shape = (self.batch, channels, window.rows.size, window.columns.size)
        return torch.empty(shape, device=self.device, memory_format=torch.channels_last)

    def clear_outside(self, delta: Delta) -> None:
        """Make a delta zero outside the occlusions' own fields. Those of uncut nodes are so by themselves, but for rounding."""
        assert delta.fields is not None
        inside = []
        for first, places in ((0, delta.rows), (2, delta.columns)):
            place = torch.arange(*places, device=self.device)
            inside.append((place >= delta.fields[:, first, None]) & (place < delta.fields[:, first + 1, None]))
        delta.data.mul_((inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(delta.data.dtype))

    def free(self, node_id: int) -> None:
        self._buffers.pop(node_id, None)

    def stored(self, node: Node, delta: Delta) -> Delta:
        """A delta on the window that its node's readers want it on."""
        rows, columns = self._window(node)
        return Delta(delta.window(rows, columns), rows.start, columns.start, delta.field)

    def view(self, node: int, kind: ViewKind) -> Tensor:
        return self._program.view(node, kind)

    def weight(self, reference: Reference) -> Tensor:
        return self._program.weight(reference)

    def kernel(self, node: Node) -> Callable[..., Any]:
        return self._program.kernels[node.id]

    def fused(self, node: Node, source: Delta | Deferred | Gated, extra: Sequence[Delta | None]) -> Delta | None:
        """The whole delta rule, ending included, by a kernel that does it in one; None when the node's is not of that kind."""
        if node.id not in self._program.fused:
            return None
        own, terms = None, self._terms(node, None, extra)
        for term in node.epilogue.terms if node.epilogue else ():
            if term.input < 0 and term.scale:
                own = self.weight(term.scale)
        target, field = self.target(node), self.field(node)
        chain = {} if self._chain is None else {"chain": self._chain}
        self.kernel(node)(target, field, source, own, terms, self._base(node, field), **chain)
        return target

    def deferred(self, node: Node, source: Delta) -> Deferred | Gated:
        """What a combine node computes of its only input, or a frozen gate, left to its only reader."""
        if node.op == "gate":
            return Gated(source, self.view(node.inputs[1], "out").flatten(1).contiguous().expand(self.batch, -1))
        assert node.epilogue is not None
        assert node.epilogue.function is not None
        (term,) = node.epilogue.terms
        scale = self.weight(term.scale) if term.scale else None
        return Deferred(source, node.epilogue.function, self.view(node.id, "pre"), scale)

    def finish(self, node: Node, result: Delta | None, extra: Sequence[Delta | None]) -> Delta:
        """Apply a node's epilogue to its own result and its further inputs, and put the delta where it belongs."""
        field, epilogue = self.field(node), node.epilogue
        if epilogue is None and result is not None and self._in_place(node):
            return result
        if epilogue is None:
            terms: list[tuple[Delta, Tensor | None]] = [] if result is None else [(result, None)]
        else:
            terms = self._terms(node, result, extra)
            terms.sort(key=lambda term: term[0] is not result)  # kernels read what they overwrite first
        # in place where the node's own result already has the right extent: one pass over memory less
        target = result if result is not None and self._in_place(node) else self.target(node)
        self._program.combines[node.id](target, field, terms, self._base(node, field))
        return target

    def _terms(self, node: Node, result: Delta | None, extra: Sequence[Delta | None]) -> list[tuple[Delta, Tensor | None]]:
        """What a node's epilogue sums, and the scales; without its own result when that is None."""
        terms: list[tuple[Delta, Tensor | None]] = []
        first = 0 if node.op == "combine" else 1
        for term in node.epilogue.terms if node.epilogue else ():
            delta = result if term.input < 0 else extra[term.input - first]
            if delta is not None:
                terms.append((delta, self.weight(term.scale) if term.scale else None))
        return terms

    def _base(self, node: Node, field: Box) -> Tensor | None:
        """The view on a field that the epilogue's function starts from, None without a function."""
        if node.function is None:
            return None
        (top, bottom), (left, right) = field
        return self.view(node.id, "pre")[:, :, top:bottom, left:right]

    def _in_place(self, node: Node) -> bool:
        return node.id not in self._program.fields.places and self._window(node) == self.field(node)

    # debug runs

    def record(self, node: Node, delta: Delta) -> None:
        """Keep a copy for `compare`."""
        copy = Delta(delta.data.clone(memory_format=torch.preserve_format), delta.top, delta.left, delta.field)
        self.recorded.append((node, copy))

    def check_field(self, node: Node, delta: Delta) -> None:
        """ExecutionError unless a delta is zero outside its field."""
        outside = delta.data.clone()
        inner = Delta(outside, delta.top, delta.left, delta.field).on_field()
        inner.zero_()
        if outside.any():
            raise ExecutionError(f"invariant I1 broken at %{node.id} ({node.op}): the delta is not zero outside its field")

    def compare(self, node: Node, delta: Delta, dense: Tensor, base: Tensor) -> None:
        """ExecutionError unless a delta is the difference of whole values."""
        (top, bottom), (left, right) = delta.field
        scale = float(base[base.isfinite()].abs().max().clamp(min=1.0))
        dense = torch.where(dense.isfinite(), dense, 0.0)
        error = dense.clone()
        error[:, :, top:bottom, left:right] -= delta.on_field()
        if float(error.abs().max()) > DEBUG_TOLERANCE * scale:
            raise ExecutionError(
                f"the delta of %{node.id} ({node.op}) is wrong by {float(error.abs().max()):g} (values up to {scale:g}), "
                f"field rows {delta.field.rows}, columns {delta.field.columns}"
            )
