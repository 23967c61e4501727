"""What capture makes of PyTorch calls: which become operators with a delta rule, and which must stay opaque."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.judge import check_exact
from support.nets import ACTIVATIONS, ARITHMETIC
from torch import Tensor, nn

from krypton.ir.graph import Graph
from krypton.ir.occlusions import Grid
from krypton.operators.opaque import FASTER, resolve
from krypton.planner.capture import capture

IMAGE = (4, 9, 8)


class Calls(nn.Module):
    """A function of the image, with modules as keywords; then a mean and a linear layer."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x).mean((2, 3))


def graph_of(function: Callable[..., Tensor], **parts: nn.Module) -> Graph:
    torch.manual_seed(0)
    return capture(Calls(function, **parts), IMAGE).graph


def operators(graph: Graph) -> list[str]:
    """Operators between the image and the final mean; opaque ones by their call."""
    assert graph.nodes[-1].op == "mean"
    return [str(n.attrs["target"]) if n.op == "opaque" else n.op for n in graph.nodes[1:-1]]


def _changed(x: Tensor, *places: slice) -> Tensor:
    x = x.clone()
    x[places] += 1.0
    return x


LIFTED: dict[str, tuple[Callable[..., Tensor], list[str]]] = {
    "conv": (lambda s, x: s.conv(x), ["conv"]),
    "conv padded as a text": (lambda s, x: F.conv2d(x, s.conv.weight, padding="same"), ["conv"]),
    "conv without bias": (lambda s, x: F.conv2d(x, s.conv.weight), ["conv"]),
    "conv with weights made on the way": (lambda s, x: F.conv2d(x, s.conv.weight * 2 + 1), ["conv"]),
    "batch norm": (lambda s, x: s.norm(x), ["combine"]),
    "two batch norms": (lambda s, x: s.norm(s.norm(x)), ["combine", "combine"]),
    "activation in place": (lambda s, x: F.relu_(s.conv(x)), ["conv", "combine"]),
    "sum in place": (lambda s, x: x.clone().add_(x), ["combine"]),
    "scale and shift at once": (lambda s, x: torch.addcmul(torch.ones(4, 1, 1), x, torch.ones(4, 1, 1)), ["combine"]),
    "the same the other way round, times two": (
        lambda s, x: torch.addcmul(torch.ones(1), torch.ones(1), x, value=2),
        ["combine"],
    ),
    "residual": (lambda s, x: x + s.norm(x), ["combine", "combine"]),
    "difference": (lambda s, x: x - s.norm(x), ["combine", "combine"]),
    "product of maps": (lambda s, x: x * s.norm(x), ["combine", "mul"]),
    "normalising inside": (lambda s, x: (x - torch.ones(4).view(1, 4, 1, 1)) / torch.ones(4, 1, 1), ["combine", "combine"]),
    "concat": (lambda s, x: torch.cat([x, s.norm(x)], 1), ["combine", "concat"]),
    "change in place of all of it": (lambda s, x: _changed(s.conv(x), slice(None), slice(None)), ["conv", "combine"]),
    "change in place of all channels": (lambda s, x: _changed(s.conv(x), slice(None), slice(0, 4)), ["conv", "combine"]),
    "concat of one": (lambda s, x: torch.cat([x], 1), []),
    "chunks": (lambda s, x: torch.cat(x.chunk(2, 1)[::-1], 1), ["channel_slice", "channel_slice", "concat"]),
    "split in unequal parts": (lambda s, x: x.split([1, 3], 1)[1], ["channel_slice"]),
    "split in equal parts": (lambda s, x: x.split(3, 1)[1], ["channel_slice"]),
    "slice of channels": (lambda s, x: x[:, 1:3], ["channel_slice"]),
    "slice of all channels": (lambda s, x: x[:, :9], []),
    "a channel taken out": (lambda s, x: x[:, 2].unsqueeze(1), ["channel_slice"]),
    "slice of space": (lambda s, x: x[:, :, 1:, :-2], ["pad", "pad"]),
    "zero padding": (lambda s, x: F.pad(x, (1, 2, 3, 0)), ["pad"]),
    "other padding": (lambda s, x: F.pad(x, (1, 2, 3, 0), value=2.0), ["pad"]),
    "cropping": (lambda s, x: F.pad(x, (-1, -2, 1, 0)), ["pad"]),
    "max pool": (lambda s, x: F.max_pool2d(x, 2), ["max_pool"]),
    "max pool with indices": (lambda s, x: F.max_pool2d(x, 2, return_indices=True)[0], ["max_pool"]),
    "average pool": (lambda s, x: F.avg_pool2d(x, 2, ceil_mode=True), ["avg_pool"]),
    "adaptive pool": (lambda s, x: F.adaptive_avg_pool2d(x, 3), ["adaptive_avg_pool"]),
    "adaptive pool to what is there": (lambda s, x: F.adaptive_avg_pool2d(x, (9, 8)), []),
    "adaptive pool to one": (lambda s, x: F.adaptive_avg_pool2d(x, 1), ["mean"]),
    "channel shuffle": (lambda s, x: F.channel_shuffle(x, 2), ["channel_shuffle"]),
    "shuffle by hand": (
        lambda s, x: x.view(x.shape[0], 2, 2, 9, 8).transpose(1, 2).contiguous().view(x.shape[0], 4, 9, 8),
        ["channel_shuffle"],
    ),
    "layer norm over channels": (lambda s, x: s.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ["channel_norm"]),
    "gate": (lambda s, x: x * x.mean((2, 3), keepdim=True), ["mean", "gate"]),
    "gate on the left": (lambda s, x: x.mean((2, 3), keepdim=True) * x, ["mean", "gate"]),
    "linear over channels": (lambda s, x: s.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), ["conv"]),
    "local response norm": (lambda s, x: F.local_response_norm(x, 3), ["local_response_norm"]),
    "group norm": (lambda s, x: F.group_norm(x, 2), ["group_norm"]),
    "instance norm": (lambda s, x: F.instance_norm(x), ["group_norm"]),
    "learned position": (lambda s, x: x + torch.ones(4, 9, 8), ["constant", "combine"]),
    "dropout": (lambda s, x: F.dropout2d(F.dropout(x, training=False), training=False), []),
    "copies": (lambda s, x: x.clone().contiguous().detach(), []),
}

OPAQUE: dict[str, tuple[Callable[..., Tensor], str]] = {
    "transposed conv": (lambda s, x: F.conv_transpose2d(x, torch.ones(4, 2, 2, 2)), "aten.conv_transpose2d.input"),
    "sum that broadcasts": (lambda s, x: x + x.mean((2, 3), keepdim=True), "aten.add.Tensor"),
    "softmax over space": (lambda s, x: x.softmax(2), "aten.softmax.int"),
    "layer norm over space": (lambda s, x: F.layer_norm(x, (4, 9, 8)), "aten.layer_norm.default"),
    "reflection": (lambda s, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "aten.pad.default"),
    "bilinear upsampling": (lambda s, x: F.interpolate(x, scale_factor=2, mode="bilinear"), "aten.upsample_bilinear2d.vec"),
    "sum with a product of maps": (lambda s, x: torch.addcmul(x, x, x), "aten.addcmul.default"),
    "change in place of some channels": (
        lambda s, x: _changed(s.conv(x), slice(None), slice(0, 3)),
        "aten.slice_scatter.default",
    ),
    "steps over space": (lambda s, x: x[:, :, ::2], "aten.slice.Tensor"),
    "flipped": (lambda s, x: x.flip(3), "aten.flip.default"),
    "transposed": (lambda s, x: x.transpose(2, 3), "aten.transpose.int"),
    "concat along rows": (lambda s, x: torch.cat([x, x], 2), "aten.cat.default"),
    "linear over columns": (lambda s, x: F.linear(x, torch.ones(5, 8)), "aten.linear.default"),
    "scaled along columns": (lambda s, x: x * torch.arange(8.0), "aten.mul.Tensor"),
    "half precision": (lambda s, x: (x.half() * 2).float(), "aten.mul.Tensor"),
}


def parts() -> dict[str, nn.Module]:
    return {"conv": nn.Conv2d(4, 4, 3), "norm": nn.BatchNorm2d(4), "layer": nn.LayerNorm(4), "linear": nn.Linear(4, 5)}


@pytest.mark.parametrize("name", LIFTED)
def test_calls_become_operators(name: str) -> None:
    function, expected = LIFTED[name]
    assert operators(graph_of(function, **parts())) == expected


@pytest.mark.parametrize("name", OPAQUE)
def test_calls_without_a_delta_rule_stay_opaque(name: str) -> None:
    function, target = OPAQUE[name]
    found = operators(graph_of(function, **parts()))
    assert target in found


@pytest.mark.parametrize("name", [*ACTIVATIONS, *ARITHMETIC])
def test_elementwise_functions_are_lifted_and_exact(name: str) -> None:
    function = (ACTIVATIONS | ARITHMETIC)[name]
    net = Calls(lambda s, x: function(s.conv(x)), conv=nn.Conv2d(4, 4, 3, padding=1))
    generator = torch.Generator().manual_seed(1)
    image, fill = torch.randn(IMAGE, generator=generator), torch.randn(4, 1, 1, generator=generator)
    plan = check_exact(net, image, fill, Grid(IMAGE[1:], (3, 2), (3, 3)), {"disabled_rules": "full_when_cheaper"})
    assert plan.tensor is not None
    lifted = name != "softsign"  # x / (1 + |x|) divides one map by another
    assert all(node.op != "opaque" for node in plan.tensor.graph) == lifted


@pytest.mark.parametrize("turned", [False, True])
def test_scale_and_shift_in_one_call_are_exact(turned: bool) -> None:
    shift, scale = torch.arange(4.0).view(4, 1, 1), torch.tensor([1.0, -2.0, 0.5, 3.0]).view(4, 1, 1)

    def function(net: nn.Module, x: Tensor) -> Tensor:
        sides = (x, scale) if turned else (scale, x)
        return torch.addcmul(shift, *sides, value=-1.5).relu()

    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))
    check_exact(Calls(function), image, torch.zeros(4, 1, 1), Grid(IMAGE[1:], (3, 2), (3, 3)))


@pytest.mark.parametrize("target", FASTER)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_faster_calls_give_what_pytorch_gives(target: str, layout: torch.memory_format) -> None:
    """Also where they only pass the call on."""
    x = torch.randn(2, 6, 9, 8, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    pieces = x.view(2, 2, 3, 9, 8)
    arguments: dict[str, list[tuple[tuple[object, ...], dict[str, object]]]] = {
        "aten.linalg_vector_norm.default": [
            ((x, 2, [2, 3], True), {}), ((x, 2, [2, 3]), {}), ((x,), {}), ((x, 1, [1]), {}),
            ((x, 2, [2]), {"dtype": torch.float64}),
        ],
        "aten.sum.dim_IntList": [
            ((pieces, [1]), {}), ((pieces, [-4]), {}), ((x, [2]), {}), ((x, [2, 3], True), {}), ((x, [1], True), {}),
            ((x, [1]), {"dtype": torch.float64}), ((x, None), {}), ((x[:0], [0]), {}), ((x > 0, [1]), {}), ((x.int(), [1]), {}),
        ],
    }  # fmt: skip
    for args, kwargs in arguments[target]:
        wanted = resolve(target)(*args, **kwargs)
        found = FASTER[target](*args, **kwargs)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        torch.testing.assert_close(found, wanted)


def test_values_of_one_number_per_image_stay_opaque_and_right() -> None:
    net = Calls(lambda s, x: x * (1 - (-x.mean((1, 2, 3)) + 1) / 2).view(-1, 1, 1, 1))
    image = torch.randn(IMAGE, generator=torch.Generator().manual_seed(1))
    check_exact(net, image, torch.zeros(4, 1, 1), Grid(IMAGE[1:], (3, 2), (3, 3)))
