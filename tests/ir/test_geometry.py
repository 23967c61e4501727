"""Fields and windows against brute force: which outputs can really see which inputs, worked out on booleans."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings

from krypton.ir.geometry import EMPTY, Cut, Interval, Projection, Window, dilated, hull, make, split_read

many = settings(max_examples=300)

SIDE = st.integers(1, 14)
KERNEL, STRIDE, DILATION = st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)


@st.composite
def intervals(draw, low: int = -4, high: int = 12) -> Interval:
    start = draw(st.integers(low, high))
    return make(start, start + draw(st.integers(-1, 6)))


@st.composite
def axes(draw) -> tuple[int, int, int, int, Window, Interval]:
    """An axis with a window operator on it: size, kernel, dilation, leading padding, the window, and what changed."""
    size, kernel, stride, dilation = draw(SIDE), draw(KERNEL), draw(STRIDE), draw(DILATION)
    leading, trailing = draw(st.integers(-2, 5)), draw(st.integers(-2, 5))
    extent = dilated(kernel, dilation)
    assume(size + leading + trailing >= extent)
    outputs = (size + leading + trailing - extent) // stride + 1
    start = draw(st.integers(0, size - 1))
    changed = Interval(start, draw(st.integers(start + 1, size)))
    return size, kernel, dilation, leading, Window(extent, stride, leading, outputs), changed


def taps(window: Window, kernel: int, dilation: int, output: int) -> set[int]:
    """The inputs that an output really reads."""
    return {output * window.stride - window.padding + tap * dilation for tap in range(kernel)}


@many
@given(axes())
def test_a_windows_field_holds_every_output_that_sees_the_change(axis) -> None:
    _, kernel, dilation, _, window, changed = axis
    reached = [o for o in range(window.size) if taps(window, kernel, dilation, o) & set(range(*changed))]
    field = window.field(changed)
    assert all(field.start <= output < field.stop for output in reached)
    if dilation == 1:
        assert field == (make(reached[0], reached[-1] + 1) if reached else EMPTY)


@many
@given(axes())
def test_a_field_lies_on_its_axis(axis) -> None:
    *_, window, changed = axis
    field = window.field(changed)
    assert field == EMPTY or 0 <= field.start < field.stop <= window.size


@many
@given(axes())
def test_fields_grow_with_what_changed(axis) -> None:
    size, *_, window, changed = axis
    larger = Interval(max(changed.start - 1, 0), min(changed.stop + 1, size))
    assert window.field(larger).contains(window.field(changed))


@many
@given(axes())
def test_outputs_read_exactly_from_their_first_tap_to_their_last(axis) -> None:
    _, kernel, dilation, _, window, changed = axis
    outputs = window.field(changed)
    read = set().union(*(taps(window, kernel, dilation, o) for o in range(*outputs)), set())
    expected = make(min(read), max(read) + 1) if read else EMPTY
    assert window.read(outputs) == expected


@many
@given(axes())
def test_a_convolution_on_the_read_window_yields_exactly_the_field(axis) -> None:
    size, kernel, dilation, _, window, changed = axis
    field = window.field(changed)
    assume(not field.empty)
    padding, span = split_read(changed, window.read(field))
    delta = torch.zeros(size)
    delta[changed.start : changed.stop] = torch.arange(1.0, changed.size + 1)
    weight = torch.arange(1.0, kernel + 1)[None, None]
    far = 40  # zeros far enough beyond the axis on both sides
    extended = F.pad(delta, (far, far))
    dense = F.conv1d(extended[far - window.padding :][None, None], weight, stride=window.stride, dilation=dilation)[0, 0]
    part = extended[far + span.start : far + span.stop]
    local = F.conv1d(part[None, None], weight, stride=window.stride, dilation=dilation, padding=padding)[0, 0]
    assert torch.equal(local, dense[field.start : field.stop])
    outside = dense[: window.size].clone()
    outside[field.start : field.stop] = 0
    assert not outside.any()


@many
@given(intervals(), intervals())
def test_split_reads_leave_padding_only_where_the_field_is_not(field: Interval, read: Interval) -> None:
    assume(not field.empty)
    assume(not read.empty)
    padding, span = split_read(field, read)
    assert padding >= 0
    assert (span.start - padding, span.stop + padding) == read
    if read.contains(field):
        assert span.contains(field)


@many
@given(st.lists(intervals(), max_size=4))
def test_a_hull_is_the_smallest_interval_around_all(members: list[Interval]) -> None:
    cells = set().union(*(range(*m) for m in members), set())
    assert hull(*members) == (Interval(min(cells), max(cells) + 1) if cells else EMPTY)


@many
@given(intervals(), st.integers(0, 10), st.integers(-5, 5))
def test_intervals_clip_and_shift_as_sets_do(interval: Interval, size: int, by: int) -> None:
    cells = set(range(*interval))
    assert set(range(*interval.clip(size))) == cells & set(range(size))
    assert set(range(*interval.shift(by))) == {cell + by for cell in cells}
    assert interval.size == len(cells)
    assert interval.empty == (not cells)


@many
@given(intervals(), intervals())
def test_containment_is_that_of_sets(a: Interval, b: Interval) -> None:
    assert a.contains(b) == (set(range(*b)) <= set(range(*a)))


def test_every_empty_interval_is_written_one_way() -> None:
    assert make(5, 5) == make(7, 2) == EMPTY.shift(3) == Interval(3, 9).clip(2) == hull() == EMPTY


def test_a_stride_can_step_over_a_change() -> None:
    window = Window(extent=1, stride=2, padding=0, size=4)
    assert window.field(Interval(3, 4)) == EMPTY
    assert window.field(Interval(2, 4)) == Interval(1, 2)
    assert window.read(EMPTY) == EMPTY
    assert window.field(EMPTY) == EMPTY


# ---------------------------------------------------------------------------------------------------- cuts

PLACES = st.floats(-5, 45)
CUTS = st.builds(Cut, st.floats(-3, 20), st.floats(-3, 20), st.booleans())


@given(CUTS, PLACES, st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.integers(1, 40))
def test_more_is_kept_of_what_projects_further(
    cut: Cut, first: float, length: float, up: float, down: float, size: int
) -> None:
    small, large = Projection(first, first + length), Projection(first - up, first + length + down)
    assert cut.kept(large, size).contains(cut.kept(small, size))


@given(CUTS, PLACES, st.floats(0, 10), st.integers(0, 39), st.integers(1, 40))
def test_a_cut_field_is_a_part_and_never_vanishes(cut: Cut, first: float, length: float, start: int, more: int) -> None:
    field, projection = Interval(start, min(start + more, 40)), Projection(first, first + length)
    part = cut.apply(field, projection, 40)
    assert field.contains(part)
    assert not part.empty
    kept = cut.kept(projection, 40)
    inside = [place for place in range(*field) if kept.start <= place < kept.stop]
    assert not inside or list(range(*part)) == inside
    assert cut.apply(EMPTY, projection, 40) == EMPTY


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 39))
def test_a_sliding_cut_keeps_its_size_inside_the_map(size: int, kept: int, centre: float) -> None:
    margin = (kept - 1) / 2
    found = Cut(margin, margin, slide=True).kept(Projection(centre, centre), size)
    assert found.size == min(kept, size) or not 0 <= centre <= size - 1
    if kept >= size and 0 <= centre <= size - 1:
        assert found == Interval(0, size)
