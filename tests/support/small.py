"""Small fixed models, one per family, for tests that want the same network every time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from krypton.ir.occlusions import Grid
from krypton.planner.capture import CapturedModel, capture
from support.nets import SpecNet, Step

IMAGE = (3, 19, 16)
GRID = Grid((19, 16), (4, 3), (5, 4))
"""4 × 4 positions, rows and columns different."""


class _Steps(list[Step]):
    def add(self, kind: str, *inputs: int, **numbers: Any) -> int:
        self.append(Step(kind, inputs, numbers))
        return len(self)

    def conv(self, x: int, out: int, kernel: int | tuple[int, int], *, act: str = "", norm: bool = True, **numbers: Any) -> int:
        """A convolution of odd size with the padding that keeps the size, batch norm and activation."""
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = numbers.pop("padding", (rows // 2, columns // 2))
        x = self.add("conv", x, out=out, kernel=(rows, columns), padding=padding, bias=not norm, **numbers)
        x = self.add("batch_norm", x) if norm else x
        return self.add("activation", x, name=act) if act else x


def _plain() -> _Steps:
    """VGG-like: biases, dropout, padding of its own, a flattened head."""
    s = _Steps()
    x = s.add("pad", 0, pad=(1, 2, 0, 1))
    x = s.conv(x, 6, 3, act="relu", norm=False, padding=0)
    x = s.add("max_pool", x, kernel_size=2)
    x = s.add("pad", x, pad=(0, 0, 0, 0))  # as "same" padding is where nothing is missing
    x = s.conv(x, 8, 3, act="relu", norm=False)
    x = s.add("dropout", x, spatial=False)
    x = s.add("adaptive_avg_pool", x, size=(3, 2))
    s.add("flatten_head", x, out=5, bias=True)
    return s


def _residual() -> _Steps:
    s = _Steps()
    x = s.conv(0, 6, 3, act="relu", stride=2)
    y = s.conv(s.conv(x, 6, 3, act="relu"), 6, 3)
    x = s.add("activation", s.add("add", y, x), name="relu")
    y = s.conv(s.conv(x, 8, 3, act="relu", stride=2), 8, 3)
    x = s.add("activation", s.add("add", y, s.conv(x, 8, 1, stride=2)), name="relu")
    s.add("mean_head", x, out=5)
    return s


def _dense() -> _Steps:
    s = _Steps()
    features = [s.conv(0, 4, 3, act="relu")]
    for _ in range(3):
        x = s.add("concat", *features) if len(features) > 1 else features[0]
        x = s.add("activation", s.add("batch_norm", x), name="relu")
        x = s.conv(x, 5, 1, act="relu")
        features.append(s.add("conv", x, out=3, kernel=3, padding=1, bias=False))
    x = s.add("activation", s.add("batch_norm", s.add("concat", *features)), name="relu")
    x = s.add("avg_pool", s.add("conv", x, out=6, kernel=1, bias=False), kernel_size=2)
    s.add("mean_head", x, out=5)
    return s


def _inception() -> _Steps:
    s = _Steps()
    x = s.conv(0, 6, 3, act="relu", padding=0)
    a, b = s.conv(x, 3, 1, act="relu"), s.conv(s.conv(x, 2, 1, act="relu"), 3, 5, act="relu")
    split = s.add("concat", s.conv(b, 2, (1, 3)), s.conv(b, 2, (3, 1)))
    pooled = s.conv(s.add("avg_pool", x, kernel_size=3, stride=1, padding=1), 2, 1, act="relu")
    x = s.add("concat", a, split, b, pooled)
    x = s.add("concat", s.add("max_pool", x, kernel_size=3, stride=2), s.conv(x, 3, 3, act="relu", stride=2, padding=0))
    s.add("mean_head", x, out=5)
    return s


def _gated() -> _Steps:
    """Squeeze and excitation: opaque in the middle."""
    s = _Steps()
    x = s.conv(0, 4, 3, act="hardswish", stride=2)
    x = s.add("gate", s.conv(x, 6, 3, act="hardswish"))
    s.add("mean_head", s.conv(x, 6, 1, act="hardswish"), out=5)
    return s


def _mobile() -> _Steps:
    s = _Steps()
    x = s.conv(0, 4, 3, act="relu6", stride=2)
    for stride in (1, 2):
        y = s.conv(s.conv(x, 8, 1, act="relu6"), 8, 3, act="relu6", stride=stride, groups=8)
        y = s.conv(y, 4, 1)
        x = s.add("add", x, y) if stride == 1 else y
    s.add("mean_head", s.conv(x, 8, 1, act="relu6"), out=5)
    return s


def _shuffled() -> _Steps:
    s = _Steps()
    x = s.conv(0, 8, 3, act="relu")
    left, right = (s.add("chunk", x, chunks=2, piece=piece) for piece in (0, 1))
    right = s.conv(s.conv(s.conv(right, 4, 1, act="relu"), 4, 3, groups=4), 4, 1, act="relu")
    x = s.add("shuffle", s.add("concat", left, right), groups=2)
    s.add("mean_head", s.add("max_pool", x, kernel_size=3, stride=2, padding=1, ceil_mode=True), out=5)
    return s


def _layered() -> _Steps:
    """ConvNeXt-like: layer norm over channels, permuted linear layers, layer scale."""
    s = _Steps()
    x = s.add("layer_norm", s.add("conv", 0, out=6, kernel=2, stride=2), affine=True)
    y = s.add("layer_norm", s.add("conv", x, out=6, kernel=5, padding=2, groups=6), affine=True)
    y = s.add("activation", s.add("pixel_linear", y, out=12, bias=True), name="gelu")
    y = s.add("scale", s.add("pixel_linear", y, out=6, bias=True))
    s.add("mean_head", s.add("add", x, y), out=5)
    return s


def _grouped() -> _Steps:
    """Group norms in a residual block, an instance norm before it."""
    s = _Steps()
    x = s.conv(s.conv(0, 4, 5, act="relu", norm=False), 6, 5, stride=2, norm=False)
    x = s.add("activation", s.add("group_norm", x, groups=6), name="relu")
    y = s.add("activation", s.add("group_norm", s.conv(x, 6, 3, norm=False), groups=2), name="relu")
    y = s.add("group_norm", s.conv(y, 6, 3, norm=False), groups=1)
    s.add("mean_head", s.add("activation", s.add("add", y, x), name="relu"), out=5)
    return s


def _normalised() -> _Steps:
    """ConvNeXt V2's response normalisation, which is a gate, before a 1×1 convolution and before one that pads."""
    s = _Steps()
    x = s.conv(s.conv(0, 4, 3, act="gelu", stride=2), 6, 3, act="gelu")
    for kernel in (1, 3):
        x = s.conv(s.add("response_norm", x), 6, kernel, act="gelu")
    s.add("mean_head", x, out=5)
    return s


MODELS = {
    "plain": _plain(),
    "residual": _residual(),
    "dense": _dense(),
    "inception": _inception(),
    "gated": _gated(),
    "mobile": _mobile(),
    "shuffled": _shuffled(),
    "layered": _layered(),
    "normalised": _normalised(),
    "grouped": _grouped(),
}

_captured: dict[str, CapturedModel] = {}


def model(name: str) -> SpecNet:
    return SpecNet(IMAGE, MODELS[name], seed=1)


def captured_model(name: str) -> CapturedModel:
    """The model's logical graph; capture is slow, so it is kept."""
    if name not in _captured:
        _captured[name] = capture(model(name), IMAGE)
    return _captured[name]


def image_and_fill() -> tuple[Tensor, Tensor]:
    """A random image and a fill that varies over it."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(IMAGE, generator=generator), torch.randn(IMAGE, generator=generator)
