"""The compiled convolutions against PyTorch's: any geometry, windows, margins and endings."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from support.deltas import blank, filled, like, noise
from support.processor import needs_pairs
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval, Window, dilated
from krypton.ir.graph import Epilogue, Function, Node, Term
from krypton.kernels import KERNELS, find, native
from krypton.operators.functions import evaluate

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

CPU = torch.device("cpu")
SIDE = 30
CHANNELS = st.sampled_from([1, 2, 3, 5, 16, 17, 31, 32, 33, 48, 70])
WINOGRAD = [(2, [3, 3]), (4, [3, 3]), (4, [5, 5]), (4, [1, 3]), (4, [3, 1]), (4, [1, 7]), (4, [7, 1])]
MANY_CHANNELS = st.sampled_from([16, 17, 24, 33, 64])


def expected(node: Node, weight: Tensor, source: Delta, field: Box, own: Tensor | None, terms: list, base: Tensor | None):
    """The whole map, convolved in double precision, cropped to the field; sums, function and difference after it."""
    top, bottom, left, right = node.attrs["padding"]
    whole = torch.zeros(*source.data.shape[:2], SIDE, SIDE, dtype=torch.float64)
    rows, columns = source.field
    whole[:, :, slice(*rows), slice(*columns)] = source.on_field().double()
    a = node.attrs
    y = F.conv2d(F.pad(whole, (left, right, top, bottom)), weight.double(), None, a["stride"], 0, a["dilation"], a["groups"])
    y = y[:, :, slice(*field.rows), slice(*field.columns)]
    if own is not None:
        y = y * own.double()[:, None, None]
    for delta, scale in terms:
        y = y + delta.window(*field).double() * (1.0 if scale is None else scale.double()[:, None, None])
    if base is not None and base.dim() == 1:
        return evaluate(node.function, y + base.double()[:, None, None])
    if base is not None:
        y = evaluate(node.function, base.double() + y) - evaluate(node.function, base.double())
    return y


def compare(
    draw, name: str, tolerance: float, *, most: int, channels=CHANNELS, outputs=CHANNELS, taps: list[int] | None = None
) -> None:
    kernel = taps or [draw(st.integers(1, most)) for _ in range(2)]
    stride, dilation = ([1, 1], [1, 1]) if taps else ([draw(st.integers(1, 3)) for _ in range(2)] for _ in range(2))
    padding = [draw(st.integers(-1, 4)) for _ in range(4)]
    batch, into = draw(st.integers(1, 5)), draw(channels)
    groups = into if name == "depthwise" else 1
    out = into if name == "depthwise" else draw(outputs)
    attrs = {
        "kernel": list(kernel), "stride": list(stride), "dilation": list(dilation), "padding": padding,
        "groups": groups, "in_channels": into,
    }  # fmt: skip
    extents = [dilated(k, d) for k, d in zip(kernel, dilation, strict=True)]
    sizes = [(SIDE + padding[2 * i] + padding[2 * i + 1] - extents[i]) // stride[i] + 1 for i in (0, 1)]
    height, width = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    top, left = draw(st.integers(0, SIDE - height)), draw(st.integers(0, SIDE - width))
    inside = Box(Interval(top, top + height), Interval(left, left + width))
    windows = [Window(extents[i], stride[i], padding[2 * i], sizes[i]) for i in (0, 1)]
    field = Box(windows[0].field(inside.rows), windows[1].field(inside.columns))
    assume(not field.empty)
    source = filled(draw, batch, into, inside)
    share = draw(st.sampled_from([-9.0, 0.0, 1.5, 9.0]))  # of what is zero in all occlusions: nothing, half, most, everything
    source.on_field().mul_(noise(draw, 1, *source.on_field().shape[1:]) > share)
    weight = noise(draw, out, into // groups, *kernel)
    own = noise(draw, out) if draw(st.booleans()) else None
    terms = [(filled(draw, batch, out, field), noise(draw, out) if draw(st.booleans()) else None)] * draw(st.integers(0, 2))
    function = draw(st.sampled_from([None, Function("relu"), Function("silu")]))
    base = None
    if draw(st.booleans()):  # an absolute ending
        base = noise(draw, out)
    elif function:
        base = noise(draw, 1, out, *sizes).contiguous(memory_format=torch.channels_last)
        base = base[:, :, slice(*field.rows), slice(*field.columns)]
    epilogue = Epilogue((Term(-1), *(Term(1 + i) for i in range(len(terms)))), function)
    node = Node(1, "conv", (0,), (out, *sizes), attrs, {"weight": "w"}, epilogue=epilogue)
    found = find("conv", name)
    assume(found.supports(node, CPU))
    target = blank(draw, batch, out, field)
    found.build(node, lambda reference: weight)(target, field, source, own, terms, base)
    wanted = like(target)
    wanted.data.zero_()
    exact = expected(node, weight, source, field, own, terms, base)
    wanted.window(*field).copy_(exact)
    size = float(exact.abs().max()) + 1.0
    torch.testing.assert_close(target.data, wanted.data, rtol=0, atol=tolerance * size)


@settings(max_examples=200)
@given(st.data())
def test_direct_convolutions_are_exact(data: st.DataObject) -> None:
    compare(data.draw, "direct", 1e-5, most=7)


@settings(max_examples=150)
@given(st.data())
def test_depthwise_convolutions_are_exact(data: st.DataObject) -> None:
    compare(data.draw, "depthwise", 1e-5, most=5)


@settings(max_examples=250)
@given(st.data(), st.sampled_from(WINOGRAD))
def test_winograd_convolutions_are_exact(data: st.DataObject, case: tuple[int, list[int]]) -> None:
    size, taps = case
    compare(data.draw, f"winograd_{size}", 3e-5, most=3, channels=MANY_CHANNELS, taps=taps)


@needs_pairs
@settings(max_examples=100)
@given(st.data())
def test_bfloat16_convolutions_err_by_what_rounding_allows(data: st.DataObject) -> None:
    compare(data.draw, "bfloat16", 2e-2, most=5)


@needs_pairs
@settings(max_examples=100)
@given(st.data(), st.sampled_from(WINOGRAD))
def test_bfloat16_winograd_convolutions_err_by_what_rounding_allows(data: st.DataObject, case: tuple[int, list[int]]) -> None:
    size, taps = case
    compare(data.draw, f"bfloat16_winograd_{size}", 0.3, most=3, channels=MANY_CHANNELS, taps=taps)


def test_deep_and_wide_convolutions_cross_all_block_borders() -> None:
    torch.manual_seed(0)
    for name, tolerance in (
        ("direct", 5e-6),
        ("winograd_2", 1e-5),
        ("winograd_4", 3e-5),
        ("bfloat16", 1e-2),
        ("bfloat16_winograd_2", 2e-2),
    ):
        attrs = {
            "kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1, 1, 1, 1], "groups": 1, "in_channels": 520,
        }  # fmt: skip
        node = Node(1, "conv", (0,), (80, SIDE, SIDE), attrs, {"weight": "w"})
        if not find("conv", name).supports(node, CPU):
            continue
        box = Box(Interval(3, 22), Interval(0, 17))
        field = Box(Interval(2, 23), Interval(0, 18))
        source = Delta(torch.randn(3, 520, 19, 17).contiguous(memory_format=torch.channels_last), 3, 0, box)
        target = Delta(torch.empty(3, 80, 21, 18).contiguous(memory_format=torch.channels_last), 2, 0, field)
        weight = torch.randn(80, 520, 3, 3) / 70
        find("conv", name).build(node, lambda reference, weight=weight: weight)(target, field, source, None, [], None)
        error = (target.data - expected(node, weight, source, field, None, [], None)).abs().max()
        assert error < tolerance * 5, (name, error)


def test_only_those_in_bfloat16_are_not_exact() -> None:
    assert [kernel.name for kernel in KERNELS if not kernel.exact] == [
        "bfloat16", "bfloat16_winograd_2", "bfloat16_winograd_4",
    ]  # fmt: skip
