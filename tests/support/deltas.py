"""Hypothesis strategies for what kernels see: deltas in any memory, on any box, with and without margins."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval

BATCHES, CHANNELS, SIDES = st.integers(1, 3), st.sampled_from([1, 2, 3, 5, 8, 17]), st.integers(1, 6)


def noise(draw, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**16))))


def memory(draw, batch: int, channels: int, height: int, width: int) -> Tensor:
    """Uninitialised, channels innermost: its own, or some channels of a larger buffer as in a concat."""
    before, after = draw(st.sampled_from([(0, 0), (0, 3), (2, 1)]))
    shape = (batch, before + channels + after, height, width)
    buffer = torch.full(shape, 77.0).contiguous(memory_format=torch.channels_last)
    return buffer[:, before : before + channels]


def filled(draw, batch: int, channels: int, field: Box, most_margin: int = 2) -> Delta:
    """A delta with noise on its field and zeros around it."""
    margins = [draw(st.integers(0, most_margin)) for _ in range(4)]
    height, width = field.rows.size + margins[0] + margins[1], field.columns.size + margins[2] + margins[3]
    data = memory(draw, batch, channels, height, width).zero_()
    delta = Delta(data, field.rows.start - margins[0], field.columns.start - margins[2], field)
    delta.on_field().copy_(noise(draw, batch, channels, field.rows.size, field.columns.size))
    return delta


def blank(draw, batch: int, channels: int, field: Box, most_margin: int = 2) -> Delta:
    """A delta to be written, full of what must not stay."""
    delta = filled(draw, batch, channels, field, most_margin)
    delta.data.fill_(55.0)
    return delta


@st.composite
def boxes_inside(draw, height: int, width: int) -> Box:
    intervals = []
    for side in (height, width):
        start = draw(st.integers(0, side - 1))
        intervals.append(Interval(start, draw(st.integers(start + 1, side))))
    return Box(*intervals)


def like(delta: Delta) -> Delta:
    """Another delta on the same box, to compare with."""
    data = torch.full_like(delta.data, 33.0, memory_format=torch.contiguous_format)
    return Delta(data.contiguous(memory_format=torch.channels_last), delta.top, delta.left, delta.field)
