"""Compiled convolutions of deltas, zero-extension and ending included: `run(target, field, source, own, terms, base)`.

`source` is the delta that is convolved, on whatever window it is stored; `own` (C,) or None scales the result before the
further `terms` are added (see native.Ending). direct: rows gathered into the cache, then one matrix product (any kernel,
stride and dilation; its source may be `Deferred` or `Gated`). winograd_2 and winograd_4: two or four outputs along each axis
at a time, F(2×2, 3×3), F(4×4, 3×3), F(4×4, 5×5) and along one axis F(4, 3) and F(4, 7), of Lavin and Gray (2015). depthwise:
one channel each. bfloat16: as direct, its factors rounded to bfloat16, sums in single precision.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from krypton.ir.delta import Box, Deferred, Delta, Gated
from krypton.ir.graph import Node
from krypton.ir.weights import Reference
from krypton.kernels import native
from krypton.kernels.chain import Chain
from krypton.kernels.native import Terms, fitting
from krypton.kernels.registry import Kernel, Runner, register_kernel

Weight = Callable[[Reference], Tensor]
Supports = Callable[[Node, torch.device], bool]
Describe = Callable[[Delta, Box], list[int]]

_ALIGNED = 64  # bytes of a cache line
_LANES = 16  # of the widest vectors
_GATE = -1  # in place of a function's number


def _plain(node: Node, device: torch.device) -> bool:
    return node.attrs["groups"] == 1 and native.can_end(node, device)


def _is_depthwise(node: Node, device: torch.device) -> bool:
    return bool(node.attrs["groups"] == node.attrs["in_channels"] == node.shape[0]) and native.can_end(node, device)


def winograd_tile(node: Node, size: int) -> tuple[int, int, int, int]:
    """Outputs and taps of a Winograd tile, rows before columns; one output along an axis on which the kernel has one tap."""
    rows, columns = node.attrs["kernel"]
    return 1 if rows == 1 else size, rows, 1 if columns == 1 else size, columns


def winograd_points(node: Node, size: int) -> int:
    """Multiplications per tile, input and output channel; 0 when there is no such kernel."""
    return _points(winograd_tile(node, size))


def _winograd_work(size: int) -> Callable[[Node, int, int], int]:
    def work(node: Node, rows: int, columns: int) -> int:
        high, _, broad, _ = winograd_tile(node, size)
        points = _points(winograd_tile(node, size))
        return int(-(-rows // high) * -(-columns // broad) * points * node.attrs["in_channels"] * node.shape[0])

    return work


@functools.cache
def _points(tile: tuple[int, int, int, int]) -> int:
    return int(native.loaded().krypton_winograd_points(native.integers(tile)))


def _is_winograd(size: int) -> Callable[[Node, torch.device], bool]:
    def supports(node: Node, device: torch.device) -> bool:
        a = node.attrs
        ones = all(tuple(a[name]) == (1, 1) for name in ("stride", "dilation"))
        # the transforms handle vectors of channels: with few of them they cost more than they save
        return ones and a["in_channels"] >= _LANES and _plain(node, device) and winograd_points(node, size) > 0

    return supports


def _in_pairs(supports: Supports) -> Supports:
    return lambda node, device: supports(node, device) and bool(native.loaded().krypton_has_pairs())


def _buffer(floats: int) -> Tensor:
    """Uninitialised memory that starts at a cache line."""
    whole = torch.empty(floats + _ALIGNED // 4, dtype=torch.float32)
    skip = -whole.data_ptr() % _ALIGNED // 4
    return whole[skip : skip + floats]


def _weights_of(node: Node, weight: Weight) -> Tensor:
    found = weight(node.weights["weight"]).float().contiguous()
    expected = (node.shape[0], node.attrs["in_channels"] // node.attrs["groups"], *node.attrs["kernel"])
    fitting(tuple(found.shape) == expected)
    return found


def _runner(node: Node, function: str, describe: Describe, *, begins: bool = False) -> Runner:
    """`function` is the compiled one's name. `begins`: does it take sources that are still to be activated, or gated?"""
    ending, channels = native.Ending(node.function), node.attrs["in_channels"]
    call = getattr(native.loaded(), f"krypton_{function}")

    def run(
        target: Delta,
        field: Box,
        source: Delta | Deferred | Gated,
        own: Tensor | None,
        terms: Terms,
        base: Tensor | None,
        chain: Chain | None = None,
    ) -> None:
        parameters, beginning = ending.parameters, [0, 0, 0, 0, 0]
        if isinstance(source, Deferred):
            fitting(begins and source.base.shape[1] == channels)
            beginning, parameters = _beginning(source, ending)
            source = source.source
        elif isinstance(source, Gated):
            fitting(begins)
            beginning, source = _gate(source), source.source
        fitting(source.data.shape[:2] == (target.data.shape[0], channels))
        integers = [*ending.describe(target, field, own, terms, base), *native.source(source), *describe(source, field)]
        arguments = native.integers([*integers, *beginning])
        if chain is None:
            call(arguments, parameters)
        else:
            chain.add(function, arguments, parameters, target, source)

    return run


def _gate(source: Gated) -> list[int]:
    gate = source.gate
    fitting(gate.shape == source.source.data.shape[:2] and gate.dtype == torch.float32)
    fitting(gate.stride(1) == 1 or gate.shape[1] == 1)
    return [_GATE, gate.data_ptr(), gate.stride(0), 0, 0]


def _beginning(source: Deferred, ending: native.Ending) -> tuple[list[int], ctypes.Array[ctypes.c_double]]:
    base, scale, field = source.base, source.scale, source.field
    fitting(field.rows.start >= 0 <= field.columns.start)
    fitting(source.source.rows.stop <= base.shape[2] and source.source.columns.stop <= base.shape[3])
    fitting(source.source.top >= 0 <= source.source.left and native.per_channel(scale, base.shape[1]))
    scaled = 0 if scale is None else scale.data_ptr()
    numbers = [native.number_of(source.function), base.data_ptr(), *native.strides(base)[1:], scaled]
    return numbers, native.doubles(*list(ending.parameters)[:2], *native.parameters_of(source.function))


def _geometry(node: Node) -> list[int]:
    a = node.attrs
    return [*a["kernel"], *a["stride"], a["padding"][0], a["padding"][2], *a["dilation"]]


def _packed(node: Node, weight: Weight, pairs: bool) -> Tensor:
    plain = _weights_of(node, weight)
    outputs, channels, *kernel = plain.shape
    area = kernel[0] * kernel[1]
    words = -(-channels * area // 2) if pairs else channels * area
    packed = _buffer(-(-outputs // _LANES) * _LANES * words)
    arguments = [plain.data_ptr(), outputs, channels, area, int(pairs), packed.data_ptr()]
    native.loaded().krypton_pack(native.integers(arguments))
    return packed


def _build_direct(node: Node, weight: Weight, pairs: bool = False) -> Runner:
    packed, geometry = _packed(node, weight, pairs), [*_geometry(node), node.attrs["in_channels"]]

    def describe(source: Delta, field: Box) -> list[int]:
        return [packed.data_ptr(), *geometry, field.rows.start, field.columns.start, int(pairs)]

    return _runner(node, "convolution", describe, begins=True)


def _build_bfloat16(node: Node, weight: Weight) -> Runner:
    return _build_direct(node, weight, pairs=True)


def _build_winograd(size: int, pairs: bool = False) -> Callable[[Node, Weight], Runner]:
    def build(node: Node, weight: Weight) -> Runner:
        plain, tile = _weights_of(node, weight), winograd_tile(node, size)
        outputs, channels = plain.shape[:2]
        fitting(winograd_points(node, size) > 0 and list(node.attrs["stride"]) == list(node.attrs["dilation"]) == [1, 1])
        words = -(-channels // 2) if pairs else channels
        packed = _buffer(-(-outputs // _LANES) * _LANES * words * winograd_points(node, size))
        arguments = [*tile, plain.data_ptr(), outputs, channels, packed.data_ptr(), int(pairs)]
        native.loaded().krypton_winograd_pack(native.integers(arguments))
        top, left = node.attrs["padding"][0], node.attrs["padding"][2]

        def describe(source: Delta, field: Box) -> list[int]:
            return [packed.data_ptr(), top, left, channels, field.rows.start, field.columns.start, *tile, int(pairs)]

        return _runner(node, "winograd", describe)

    return build


def _build_depthwise(node: Node, weight: Weight) -> Runner:
    ordered = _weights_of(node, weight)[:, 0].permute(1, 2, 0).contiguous()
    geometry = _geometry(node)

    def describe(source: Delta, field: Box) -> list[int]:
        return [ordered.data_ptr(), *geometry, field.rows.start, field.columns.start]

    return _runner(node, "depthwise", describe)


_native = functools.partial(Kernel, operator="conv", fused=True, chained=True)
register_kernel(_native("direct", supports=_plain, build=_build_direct, priority=20, begins=True))
register_kernel(_native("depthwise", supports=_is_depthwise, build=_build_depthwise, priority=30))
register_kernel(_native("bfloat16", supports=_in_pairs(_plain), build=_build_bfloat16, priority=-1, begins=True, error=2.3e-3))
for _size, _error in ((2, 3.5e-3), (4, 1.9e-2)):  # measured on normal weights and rectified normal inputs
    _tiled = functools.partial(_native, work=_winograd_work(_size))
    register_kernel(
        _tiled(f"winograd_{_size}", supports=_is_winograd(_size), build=_build_winograd(_size), priority=20 + _size // 2)
    )
    _name, _supports, _build = f"bfloat16_winograd_{_size}", _in_pairs(_is_winograd(_size)), _build_winograd(_size, pairs=True)
    register_kernel(_tiled(_name, supports=_supports, build=_build, priority=-1, error=_error))
