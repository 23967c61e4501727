"""The compiled kernels against the reference kernels: any strides, boxes and margins, all functions."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from support.deltas import BATCHES, CHANNELS, SIDES, blank, boxes_inside, filled, like, noise

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval, hull
from krypton.ir.graph import Epilogue, Function, Node, Term
from krypton.kernels import find, native
from krypton.operators import OPERATORS, operator_of
from krypton.operators.functions import FUNCTIONS

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

many = settings(max_examples=150)
PARAMETERS = {"clamp": (-0.5, 0.8), "leaky_relu": (0.1,)}


def no_weight(reference: str) -> torch.Tensor:
    raise AssertionError(reference)


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(mine.contiguous(), theirs.contiguous(), rtol=2e-5, atol=2e-5)


@many
@given(st.data(), BATCHES, CHANNELS, st.sampled_from([None, *native.NATIVE_FUNCTIONS]), st.integers(0, 4))
def test_combine_writes_what_the_reference_writes(data, batch, channels, name, count) -> None:
    draw = data.draw
    fields = [draw(boxes_inside(12, 12)) for _ in range(max(count, 1))]
    field = Box(hull(*(f.rows for f in fields)), hull(*(f.columns for f in fields)))
    terms = []
    for number in range(count):
        scale = noise(draw, channels) if draw(st.booleans()) else None
        terms.append((filled(draw, batch, channels, fields[number]), scale))
    whole = noise(draw, 1, channels, 12, 12).contiguous(memory_format=torch.channels_last)
    base = whole[:, :, slice(*field.rows), slice(*field.columns)] if name else None
    function = Function(name, PARAMETERS.get(name, ())) if name else None
    node = Node(1, "combine", (), (channels, 12, 12), epilogue=Epilogue(tuple(Term(i) for i in range(count)), function))
    target = blank(draw, batch, channels, field)
    expected = like(target)
    find("combine", "native").build(node, no_weight)(target, field, terms, base)
    find("combine", "reference").build(node, no_weight)(expected, field, terms, base)
    close(target.data, expected.data)


@many
@given(st.data(), BATCHES, CHANNELS, st.sampled_from([None, "relu", "silu"]), st.booleans())
def test_combine_may_write_where_its_first_term_is(data, batch, channels, name, scaled) -> None:
    draw = data.draw
    field = draw(boxes_inside(8, 8))
    own = filled(draw, batch, channels, field, 0)
    inside = draw(boxes_inside(field.rows.size, field.columns.size))
    other = filled(draw, batch, channels, Box(inside.rows.shift(field.rows.start), inside.columns.shift(field.columns.start)))
    terms = [(own, noise(draw, channels) if scaled else None), (other, None)]
    base = noise(draw, 1, channels, field.rows.size, field.columns.size).contiguous(memory_format=torch.channels_last)
    function = Function(name) if name else None
    node = Node(1, "combine", (0, 1), (channels, 8, 8), epilogue=Epilogue((Term(0), Term(1)), function))
    results = []
    for kernel in ("native", "reference"):
        mine = Delta(own.data.clone(), own.top, own.left, field)
        find("combine", kernel).build(node, no_weight)(mine, field, [(mine, terms[0][1]), terms[1]], base if name else None)
        results.append(mine.data)
    close(*results)


def test_every_native_function_is_one_of_the_table() -> None:
    assert set(native.NATIVE_FUNCTIONS) <= set(FUNCTIONS)
    assert len(set(native.NATIVE_FUNCTIONS.values())) == len(native.NATIVE_FUNCTIONS)


@pytest.mark.parametrize("name", native.NATIVE_FUNCTIONS)
def test_native_functions_are_accurate_far_from_zero_and_near_it(name: str) -> None:
    base = torch.cat([torch.linspace(-30, 30, 241), torch.linspace(-1e-3, 1e-3, 40), torch.tensor([-1e4, 1e4])])
    change = torch.cat([torch.linspace(40, -40, 241), torch.linspace(-1, 1, 40), torch.tensor([2e4, -2e4])])
    field = Box(Interval(0, 1), Interval(0, 1))
    function = Function(name, PARAMETERS.get(name, ()))
    node = Node(1, "combine", (0,), (base.numel(), 1, 1), epilogue=Epilogue((Term(0),), function))
    target = Delta(torch.empty(1, base.numel(), 1, 1), 0, 0, field)
    terms = [(Delta(change.reshape(1, -1, 1, 1), 0, 0, field), None)]
    find("combine", "native").build(node, no_weight)(target, field, terms, base.reshape(1, -1, 1, 1))
    evaluate = FUNCTIONS[name].evaluate
    wide = base.double()
    expected = evaluate(wide + change.double(), *function.parameters) - evaluate(wide, *function.parameters)
    torch.testing.assert_close(target.data.flatten().double(), expected, rtol=1e-5, atol=1e-5)


@st.composite
def pools(draw, maximum: bool) -> tuple[Node, tuple[int, int]]:
    """A pool node and the size of its input."""
    size = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    kernel = [draw(st.integers(1, min(4, side))) for side in size]
    attrs = {
        "kernel": kernel,
        "stride": [draw(st.integers(1, 4)) for _ in size],
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": [draw(st.integers(1, 2)) if maximum and 2 * k - 1 <= n else 1 for k, n in zip(kernel, size, strict=True)],
        "ceil_mode": draw(st.booleans()),
        "input_size": list(size),
        "count_include_pad": draw(st.booleans()),
        "divisor": draw(st.sampled_from([None, None, 3])),
    }  # fmt: skip
    op = "max_pool" if maximum else "avg_pool"
    probe = Node(1, op, (0,), (1, 1, 1), attrs)
    shape = tuple(operator_of(probe).full(probe, [torch.zeros(1, 1, *size)], None).shape[1:])
    return Node(1, op, (0,), shape, attrs), size


@many
@given(st.data(), pools(maximum=True), BATCHES, CHANNELS)
def test_max_pool_writes_what_the_reference_writes(data, made, batch, channels) -> None:
    node, size = made
    source = filled(data.draw, batch, channels, data.draw(boxes_inside(*size)))
    field = Box(*(OPERATORS["max_pool"].field(node, axis, [source.field[axis]]) for axis in (0, 1)))
    assume(not field.empty)
    view = noise(data.draw, 1, channels, *size).contiguous(memory_format=torch.channels_last)
    a = node.attrs
    result = F.max_pool2d(view, a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])
    target = blank(data.draw, batch, channels, field)
    expected = like(target)
    find("max_pool", "native").build(node, no_weight)(target, source, view, result)
    find("max_pool", "reference").build(node, no_weight)(expected, source, view, result)
    close(target.data, expected.data)


@many
@given(st.data(), pools(maximum=False), BATCHES, CHANNELS)
def test_avg_pool_writes_what_the_reference_writes(data, made, batch, channels) -> None:
    node, size = made
    source = filled(data.draw, batch, channels, data.draw(boxes_inside(*size)))
    field = Box(*(OPERATORS["avg_pool"].field(node, axis, [source.field[axis]]) for axis in (0, 1)))
    assume(not field.empty)
    target = blank(data.draw, batch, channels, field)
    expected = like(target)
    find("avg_pool", "native").build(node, no_weight)(target, source)
    find("avg_pool", "reference").build(node, no_weight)(expected, source)
    close(target.data, expected.data)


@many
@given(st.data(), BATCHES, st.sampled_from([2, 3, 4, 6, 8, 16]), SIDES)
def test_onednn_convolves_as_the_reference(data, batch, channels, side) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([g for g in (1, 1, 2, 3, channels) if channels % g == 0]))
    kernel, dilation = [draw(st.integers(1, 4)) for _ in range(2)], [draw(st.integers(1, 3)) for _ in range(2)]
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    # from a single output up
    height, width = (max(extent - 2 * p, 0) + draw(st.integers(0, side)) for extent, p in zip(extents, padding, strict=True))
    assume(height > 0 and width > 0)
    attrs = {
        "kernel": kernel, "dilation": dilation, "stride": [draw(st.integers(1, 3)) for _ in range(2)], "groups": groups,
        "padding": [0, 0, 0, 0], "in_channels": channels,
    }  # fmt: skip
    out = groups * draw(st.integers(1, 5))
    weight = noise(draw, out, channels // groups, *kernel)
    node = Node(1, "conv", (0,), (out, 1, 1), attrs, {"weight": "w"})
    x = noise(draw, batch, channels, height, width).contiguous(memory_format=torch.channels_last)
    results = [find("conv", name).build(node, lambda reference: weight)(x, padding) for name in ("onednn", "reference")]
    close(*results)
    assert all(result.is_contiguous(memory_format=torch.channels_last) for result in results)
