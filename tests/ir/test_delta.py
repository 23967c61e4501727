"""Deltas as tensors on boxes: windows of them against the dense tensor they stand for."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import EMPTY, Interval

FAR = 30


@st.composite
def spans(draw, longest: int = 8) -> Interval:
    start = draw(st.integers(-6, 10))
    return Interval(start, start + draw(st.integers(1, longest)))


@st.composite
def deltas(draw) -> tuple[Delta, torch.Tensor]:
    """A delta stored with margins, and the dense tensor it means, shifted by FAR."""
    rows, columns = draw(spans()), draw(spans())
    margins = [draw(st.integers(0, 3)) for _ in range(4)]
    height, width = rows.size + margins[0] + margins[1], columns.size + margins[2] + margins[3]
    data = torch.zeros(2, 3, height, width).contiguous(memory_format=torch.channels_last)
    filled = torch.randn(2, 3, rows.size, columns.size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    data[:, :, margins[0] : margins[0] + rows.size, margins[2] : margins[2] + columns.size] = filled
    dense = torch.zeros(2, 3, 3 * FAR, 3 * FAR)
    dense[:, :, FAR + rows.start : FAR + rows.stop, FAR + columns.start : FAR + columns.stop] = filled
    return Delta(data, rows.start - margins[0], columns.start - margins[2], Box(rows, columns)), dense


def part(dense: torch.Tensor, rows: Interval, columns: Interval) -> torch.Tensor:
    return dense[:, :, FAR + rows.start : FAR + rows.stop, FAR + columns.start : FAR + columns.stop]


@settings(max_examples=200)
@given(deltas(), spans(14), spans(14))
def test_a_window_is_the_dense_tensors_part_wherever_it_lies(made, rows: Interval, columns: Interval) -> None:
    delta, dense = made
    assert torch.equal(delta.window(rows, columns), part(dense, rows, columns))


@given(deltas())
def test_on_field_leaves_the_margins_away(made) -> None:
    delta, dense = made
    assert torch.equal(delta.on_field(), part(dense, *delta.field))


@given(deltas())
def test_cleared_gives_the_field_to_write_and_zeroes_the_margins(made) -> None:
    delta, _ = made
    delta.data.fill_(7.0)
    inner = delta.cleared()
    inner.data.copy_(torch.ones_like(inner.data))
    assert (inner.rows, inner.columns) == inner.field == delta.field
    assert float(delta.data.sum()) == inner.data.numel()


def test_windows_inside_the_data_are_not_copied() -> None:
    delta = Delta(torch.randn(1, 2, 5, 6), 3, 4, Box(Interval(3, 8), Interval(4, 10)))
    assert delta.window(delta.rows, delta.columns) is delta.data
    assert delta.window(Interval(4, 6), Interval(4, 9)).data_ptr() == delta.data[:, :, 1:, :].data_ptr()


def test_a_box_is_empty_when_one_axis_is() -> None:
    assert Box(EMPTY, Interval(0, 3)).empty
    assert Box(Interval(1, 3), Interval(0, 3)).area == 6
    assert str(Box(Interval(1, 3), Interval(0, 3))) == "2×3"
