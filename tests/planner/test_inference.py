"""Full inference by PyTorch as operators with costs: of a graph, and of a model that is watched."""

from __future__ import annotations

import pytest
import torch
from support.small import captured_model
from torch import Tensor, nn

from krypton.errors import CaptureError
from krypton.planner.capture import capture
from krypton.planner.inference import of_graph, watch
from krypton.planner.profile import DeviceProfile, Shape

SHAPE = (3, 10, 12)
IMAGE = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 3 * 4, 5)
    ).eval()


MULTIPLY_ADDS = 5 * 6 * 8 * 27 + 3 * 4 * 8 * 18 + 96 * 5


def test_a_watched_model_has_the_multiply_adds_of_its_layers() -> None:
    assert watch(net(), IMAGE).multiply_adds == MULTIPLY_ADDS


def test_graph_and_model_have_the_same_multiply_adds() -> None:
    assert of_graph(capture(net(), SHAPE).graph).multiply_adds == MULTIPLY_ADDS


def test_convolutions_are_known_by_their_products() -> None:
    shapes = [Shape(27, 8, 30), Shape(18, 8, 12)]
    assert [o.convolution for o in watch(net(), IMAGE).operations if o.convolution] == shapes
    assert [o.convolution for o in of_graph(capture(net(), SHAPE).graph).operations if o.convolution] == shapes


def test_weights_are_read_once_per_batch() -> None:
    profile = DeviceProfile(node_overhead_ms=1e-9, multiply_adds_per_ms=1e30)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(360, 1000))
    inference = watch(wide, IMAGE)
    weights = 4 * (360 * 1000 + 1000) / profile.bytes_per_ms
    values = 4 * (360 + 1000) / profile.bytes_per_ms
    assert inference.milliseconds(1, profile) == pytest.approx(weights + values, rel=0.01)
    assert inference.milliseconds(8, profile) == pytest.approx(weights + 8 * values, rel=0.01)


def test_the_peak_is_what_is_alive_at_the_same_time() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x * 2  # 1,440 bytes
            second = torch.cat([first, first])  # 2,880 bytes, and then the first goes
            del first
            third = second + 1  # 2,880 bytes, and 24 of the result
            return third.mean((2, 3))

    assert watch(Steps(), IMAGE).peak_bytes == 2 * 2880 + 24


def test_endings_are_passes_over_memory() -> None:
    graph = captured_model("residual").graph
    convolutions = sum(node.op == "conv" for node in graph)
    assert len(of_graph(graph).operations) > convolutions + sum(node.op == "combine" for node in graph)


def test_a_model_that_cannot_be_watched_is_an_error_of_the_users() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    with pytest.raises(CaptureError, match="Broken cannot be watched: not today"):
        watch(Broken(), IMAGE)


def test_watching_leaves_training_flags_alone() -> None:
    module = net().train()
    watch(module, IMAGE)
    assert all(part.training for part in module.modules())
