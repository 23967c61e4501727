"""The divisors and bounds of average pools against PyTorch's own, and their fields against brute force."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from krypton.ir.geometry import Interval, make
from krypton.ir.graph import Node
from krypton.operators import OPERATORS
from krypton.operators.pool import adaptive_bounds, divisors

many = settings(max_examples=200)


@many
@given(st.data())
def test_divisors_are_those_of_avg_pool2d(data) -> None:
    draw = data.draw
    size = [draw(st.integers(1, 11)) for _ in range(2)]
    kernel = [draw(st.integers(1, min(4, side))) for side in size]
    attrs = {
        "kernel": kernel,
        "stride": [draw(st.integers(1, 5)) for _ in size],
        "padding": [draw(st.integers(0, k // 2)) for k in kernel],
        "dilation": [1, 1],
        "count_include_pad": draw(st.booleans()),
        "divisor": draw(st.sampled_from([None, None, 1, 7])),
        "input_size": size,
    }
    ceil_mode = draw(st.booleans())
    ones = torch.ones(1, 1, *size)
    a = attrs
    pooled = F.avg_pool2d(ones, kernel, a["stride"], a["padding"], ceil_mode, a["count_include_pad"], a["divisor"])[0, 0]
    node = Node(1, "avg_pool", (0,), (1, *pooled.shape), attrs)
    counts = []  # how many pixels of the image each output sees, along an axis
    for axis in (0, 1):
        starts = torch.arange(pooled.shape[axis])[:, None] * a["stride"][axis] - a["padding"][axis]
        taps = starts + torch.arange(kernel[axis])
        counts.append(((taps >= 0) & (taps < size[axis])).sum(1).float())
    rows, columns = (divisors(node, axis, Interval(0, pooled.shape[axis])) for axis in (0, 1))
    mine = (rows * counts[0])[:, None] * (columns * counts[1])[None]
    torch.testing.assert_close(mine, pooled)


@many
@given(st.integers(1, 20), st.integers(1, 20))
def test_adaptive_bounds_are_those_of_adaptive_avg_pool2d(inputs: int, outputs: int) -> None:
    reads = F.adaptive_avg_pool1d(torch.eye(inputs)[None], outputs)[0].t() > 0  # (outputs, inputs)
    for output in range(outputs):
        bounds = adaptive_bounds(output, outputs, inputs)
        assert reads[output].nonzero().flatten().tolist() == list(range(*bounds))


@many
@given(st.data(), st.integers(1, 16), st.integers(2, 16))
def test_adaptive_fields_are_tight(data, inputs: int, outputs: int) -> None:
    start = data.draw(st.integers(0, inputs - 1))
    changed = Interval(start, data.draw(st.integers(start + 1, inputs)))
    node = Node(1, "adaptive_avg_pool", (0,), (1, outputs, 1), {"input_size": [inputs, 1]})
    reached = [o for o in range(outputs) if set(range(*adaptive_bounds(o, outputs, inputs))) & set(range(*changed))]
    assert OPERATORS["adaptive_avg_pool"].field(node, 0, [changed]) == make(reached[0], reached[-1] + 1)
