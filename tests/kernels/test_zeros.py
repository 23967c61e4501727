"""What is zero in neighbouring occlusions at once is not multiplied, and answers do not depend on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval, Window
from krypton.ir.graph import Node
from krypton.kernels import find, native

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

CPU = torch.device("cpu")
MAP, BOX = 20, Box(Interval(3, 12), Interval(5, 17))
CASES = [(1, 1, 300, 70), (3, 1, 40, 33), (3, 2, 90, 48), (7, 2, 3, 64)]


def convolve(data: Tensor, weight: Tensor, stride: int, name: str, fields: Tensor | None = None) -> Tensor:
    outputs, channels, taps, _ = weight.shape
    window = Window(taps, stride, taps // 2, (MAP - 1) // stride + 1)
    attrs = {
        "kernel": [taps, taps], "stride": [stride, stride], "dilation": [1, 1], "padding": [taps // 2] * 4, "groups": 1,
        "in_channels": channels,
    }  # fmt: skip
    node = Node(1, "conv", (0,), (outputs, window.size, window.size), attrs, {"weight": "w"})
    kernel = find("conv", name)
    if not kernel.supports(node, CPU):
        pytest.skip(f"{name} is not for this processor")
    field = Box(window.field(BOX.rows), window.field(BOX.columns))
    room = torch.full((len(data), outputs, field.rows.size, field.columns.size), 55.0)
    target = Delta(room.contiguous(memory_format=torch.channels_last), field.rows.start, field.columns.start, field, fields)
    source = Delta(data.contiguous(memory_format=torch.channels_last), BOX.rows.start, BOX.columns.start, BOX)
    kernel.build(node, lambda reference: weight)(target, field, source, None, [], None)
    return target.data


def rectified(batch: int, channels: int) -> Tensor:
    """Deltas as an activation leaves them: much the same channels are zero in all occlusions at a place."""
    shape = (channels, BOX.rows.size, BOX.columns.size)
    return torch.randn(batch, *shape) * (torch.rand(shape) < 0.5) * (torch.rand(batch, *shape) < 0.9)


@pytest.mark.parametrize("name", ["direct", "bfloat16"])
@pytest.mark.parametrize(("taps", "stride", "channels", "outputs"), CASES)
def test_bits_do_not_depend_on_what_is_zero_in_other_occlusions(
    name: str, taps: int, stride: int, channels: int, outputs: int
) -> None:
    torch.manual_seed(0)
    weight, data = torch.randn(outputs, channels, taps, taps), rectified(29, channels)
    together = convolve(data, weight, stride, name)
    beside = data.clone()
    beside[1::2] = torch.randn_like(beside[1::2])  # neighbours without zeros: nothing can be left out
    assert torch.equal(together[::2], convolve(beside, weight, stride, name)[::2])
    alone = torch.cat([convolve(data[n : n + 1], weight, stride, name) for n in range(5)])
    assert torch.equal(together[:5], alone)


@pytest.mark.parametrize("name", ["direct", "bfloat16"])
def test_occlusions_of_nothing_but_zeros_answer_zero_or_their_neighbours_exactly(name: str) -> None:
    torch.manual_seed(1)
    weight, data = torch.randn(40, 280, 3, 3), rectified(13, 280)
    data[4] = 0.0
    data[:, :256] = 0.0  # a whole block of channels
    found = convolve(data, weight, 1, name)
    assert not found[4].any()
    tolerance = 1e-4 if name == "direct" else 0.5
    wanted = torch.nn.functional.conv2d(torch.nn.functional.pad(data, (5, 3, 3, 8)), weight, padding=1)[:, :, 2:13, 4:18]
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
    assert not convolve(torch.zeros_like(data), weight, 1, name).any()


def test_minus_zero_is_zero() -> None:
    weight = torch.randn(32, 16, 1, 1)
    data = torch.full((3, 16, BOX.rows.size, BOX.columns.size), -0.0)
    assert not convolve(data, weight, 1, "direct").any()


def test_places_are_grouped_whatever_the_occlusions_own_fields_are() -> None:
    """Twenty and more at some places, one at others, none at many."""
    torch.manual_seed(2)
    weight, data = torch.randn(200, 50, 1, 1), rectified(30, 50)
    fields = torch.tensor([[3 + n % 5, 8 + n % 3, 5 + n // 5, 9 + n // 4] for n in range(30)])
    found = convolve(data, weight, 1, "direct", fields)
    whole = torch.nn.functional.conv2d(data, weight)
    for n, (top, bottom, left, right) in enumerate(fields.tolist()):
        own = torch.zeros_like(whole[n])
        inside = (slice(None), slice(top - 3, bottom - 3), slice(left - 5, right - 5))
        own[inside] = whole[n][inside]
        torch.testing.assert_close(found[n], own, rtol=0, atol=1e-4)
