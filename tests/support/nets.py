"""Networks from specs: a list of steps, each reading earlier values. `SpecNet` builds and runs any such list.

A step is `Step(kind, inputs, numbers)`; value 0 is the image, step i makes value i + 1, the last value is the logits. A kind is
a row of `PARTS` (the module it needs, if any) and of `COMPUTATIONS` (what it computes, if not just that module).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    kind: str
    inputs: tuple[int, ...]
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value!r}" for name, value in self.numbers.items())
        return f"Step({self.kind!r}, {self.inputs}, dict({numbers}))"


class SpecNet(nn.Module):
    """The network of a spec, its weights drawn from `seed`, always in eval mode."""

    def __init__(self, image: tuple[int, int, int], steps: Sequence[Step], seed: int = 0) -> None:
        super().__init__()
        self.steps = list(steps)
        self.parts = nn.ModuleList()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            values = [torch.randn(2, *image)]
            for step in self.steps:
                inputs = [values[source] for source in step.inputs]
                part = PARTS.get(step.kind, _nothing)(inputs, step.numbers)
                self.parts.append(part.eval())
                with torch.no_grad():
                    values.append(self._run(step, part, inputs))

    def _run(self, step: Step, part: nn.Module, inputs: list[Tensor]) -> Tensor:
        if step.kind in PARTS and step.kind not in COMPUTATIONS:
            return part(*inputs)
        return COMPUTATIONS[step.kind](part, inputs, step.numbers)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step, part in zip(self.steps, self.parts, strict=True):
            values.append(self._run(step, part, [values[source] for source in step.inputs]))
        return values[-1]


class _Constant(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(*shape))


def _nothing(inputs: list[Tensor], numbers: Mapping[str, Any]) -> nn.Module:
    return nn.Identity()


def _conv(inputs: list[Tensor], n: Mapping[str, Any]) -> nn.Module:
    given = {k: v for k, v in n.items() if k in ("stride", "padding", "dilation", "groups", "bias", "padding_mode")}
    layer = nn.Conv2d(inputs[0].shape[1], n["out"], n["kernel"], **given)
    nn.init.normal_(layer.weight, std=(layer.weight[0].numel()) ** -0.5)
    return layer


def _batch_norm(inputs: list[Tensor], n: Mapping[str, Any]) -> nn.Module:
    channels = inputs[0].shape[1]
    layer = nn.BatchNorm2d(channels, affine=n.get("affine", True))
    layer.running_mean = torch.randn(channels) * 0.5
    layer.running_var = torch.rand(channels) + 0.3
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def _layer_norm(inputs: list[Tensor], n: Mapping[str, Any]) -> nn.Module:
    layer = nn.LayerNorm(inputs[0].shape[1], elementwise_affine=n["affine"])
    if n["affine"]:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


def _group_norm(inputs: list[Tensor], n: Mapping[str, Any]) -> nn.Module:
    layer = nn.GroupNorm(n["groups"], inputs[0].shape[1])
    nn.init.normal_(layer.bias)  # else a mean over space of the result is nothing but rounding
    return layer


def _gate(inputs: list[Tensor], n: Mapping[str, Any]) -> nn.Module:
    channels = inputs[0].shape[1]
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1), nn.Sigmoid())


class _ResponseNorm(nn.Module):
    """As in ConvNeXt V2 (global response normalisation, its equations 1 to 3), with scale and shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(1, channels, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)
        return x + torch.addcmul(self.shift, self.scale, x * (norm / (norm.mean(1, keepdim=True) + 1e-6)))


PARTS: dict[str, Callable[[list[Tensor], Mapping[str, Any]], nn.Module]] = {
    "conv": _conv,
    "padded_conv": _conv,
    "batch_norm": _batch_norm,
    "max_pool": lambda x, n: nn.MaxPool2d(**n),
    "avg_pool": lambda x, n: nn.AvgPool2d(**n),
    "adaptive_avg_pool": lambda x, n: nn.AdaptiveAvgPool2d(n["size"]),
    "layer_norm": _layer_norm,
    "pixel_linear": lambda x, n: nn.Linear(x[0].shape[1], n["out"], bias=n["bias"]),
    "gate": _gate,
    "response_norm": lambda x, n: _ResponseNorm(x[0].shape[1]),
    "scale": lambda x, n: _Constant(1, x[0].shape[1], 1, 1),
    "shift": lambda x, n: _Constant(1, x[0].shape[1], 1, 1),
    "position": lambda x, n: _Constant(1, *x[0].shape[1:]),
    "prelu": lambda x, n: nn.PReLU(x[0].shape[1]),
    "group_norm": _group_norm,
    "transposed_conv": lambda x, n: nn.ConvTranspose2d(x[0].shape[1], n["out"], 2, stride=2),
    "dropout": lambda x, n: nn.Dropout2d(0.5) if n["spatial"] else nn.Dropout(0.5),
    "pixel_shuffle": lambda x, n: nn.PixelShuffle(2),
    "mean_head": lambda x, n: nn.Linear(x[0].shape[1], n["out"]),
    "flatten_head": lambda x, n: nn.Linear(x[0][0].numel(), n["out"], bias=n["bias"]),
    "conv_head": lambda x, n: nn.Conv2d(x[0].shape[1], n["out"], 1),
}


def _shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def _layer_norm_2d(part: nn.Module, x: Tensor) -> Tensor:
    return part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "clamp_min": lambda x: x.clamp(min=-0.25),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": lambda x: F.elu(x, 1.3),
    "selu": F.selu,
    "mish": F.mish,
    "softplus": lambda x: F.softplus(x, beta=2),
    "exp": lambda x: torch.exp(x.clamp(max=1.0)),
    "sqrt": lambda x: torch.sqrt(x.abs() + 0.1),
    "log_sigmoid": F.logsigmoid,
    "square": lambda x: x * x.sigmoid() * 0.5 * x.tanh(),
    "softsign": F.softsign,
}

ARITHMETIC: dict[str, Callable[[Tensor], Tensor]] = {
    "one_minus": lambda x: 1 - x,
    "negative": lambda x: -x,
    "double": lambda x: 2 * x,
    "half": lambda x: x / 2,
    "plus": lambda x: x + 0.7,
    "minus": lambda x: x - 0.3,
    "add_alpha": lambda x: torch.add(x, 3, alpha=0.5),
    "rsub_alpha": lambda x: torch.rsub(x, 1.5, alpha=2),
}

COMPUTATIONS: dict[str, Callable[[Any, list[Tensor], Mapping[str, Any]], Tensor]] = {
    "padded_conv": lambda part, x, n: part(F.pad(x[0], n["pad"])),
    "pad": lambda part, x, n: F.pad(x[0], n["pad"], value=n.get("value", 0.0)),
    "crop": lambda part, x, n: x[0][:, :, n["top"] : n["bottom"], n["left"] : n["right"]],
    "activation": lambda part, x, n: ACTIVATIONS[n["name"]](x[0]),
    "arithmetic": lambda part, x, n: ARITHMETIC[n["name"]](x[0]),
    "scale": lambda part, x, n: x[0] * part.value,
    "shift": lambda part, x, n: x[0] + part.value,
    "position": lambda part, x, n: x[0] + part.value,
    "add": lambda part, x, n: torch.add(x[0], x[1], alpha=n.get("alpha", 1)),
    "sub": lambda part, x, n: x[0] - x[1],
    "mul": lambda part, x, n: x[0] * x[1],
    "concat": lambda part, x, n: torch.cat(x, 1),
    "slice": lambda part, x, n: x[0][:, n["start"] : n["stop"]],
    "split": lambda part, x, n: torch.split(x[0], n["size"], 1)[n["piece"]],
    "chunk": lambda part, x, n: x[0].chunk(n["chunks"], 1)[n["piece"]],
    "shuffle": lambda part, x, n: _shuffle(x[0], n["groups"]),
    "channel_shuffle": lambda part, x, n: F.channel_shuffle(x[0], n["groups"]),
    "layer_norm": lambda part, x, n: _layer_norm_2d(part, x[0]),
    "pixel_linear": lambda part, x, n: _layer_norm_2d(part, x[0]),
    "gate": lambda part, x, n: x[0] * part(x[0]),
    "spatial_gate": lambda part, x, n: x[0] * x[0].mean(1, keepdim=True).sigmoid(),
    "upsample": lambda part, x, n: F.interpolate(x[0], scale_factor=2, mode=n["mode"]),
    "reflect_pad": lambda part, x, n: F.pad(x[0], (1, 1, 1, 1), mode="reflect"),
    "softmax": lambda part, x, n: torch.softmax(x[0], n["dim"]),
    "mean_head": lambda part, x, n: part(x[0].mean((2, 3))),
    "pooled_head": lambda part, x, n: F.adaptive_avg_pool2d(x[0], 1).flatten(1),
    "max_head": lambda part, x, n: x[0].amax((2, 3)),
    "flatten_head": lambda part, x, n: part(x[0].flatten(1)),
    "conv_head": lambda part, x, n: part(x[0]).mean((2, 3)),
}
