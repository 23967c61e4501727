"""Hypothesis strategies: random small CNNs, images, fills and occlusions.

Blocks append steps to a net under construction. They mostly read the newest value, so that little of a net is dead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import torch

from krypton.ir.occlusions import Grid, Masks, Occlusions
from support.nets import ACTIVATIONS, ARITHMETIC, SpecNet, Step

Draw = Callable[[Any], Any]
Shape = tuple[int, ...]

MOST_CHANNELS = 16
LARGEST_SIDE = 26


@dataclass
class Net:
    """A net under construction; value i has shape `shapes[i]`."""

    shapes: list[Shape]
    draw: Draw
    steps: list[Step] = field(default_factory=list)

    def add(self, kind: str, *inputs: int, **numbers: Any) -> int:
        step = Step(kind, inputs, numbers)
        shapes = [self.shapes[source] for source in inputs]
        self.steps.append(step)
        self.shapes.append(_result_shape(step, shapes))
        return len(self.shapes) - 1

    def pick(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))


def _result_shape(step: Step, shapes: list[Shape]) -> Shape:
    moved = Step(step.kind, tuple(range(len(shapes))), step.numbers)
    probe = SpecNet.__new__(SpecNet)
    from support import nets

    inputs = [torch.zeros(2, *shape) for shape in shapes]
    part = nets.PARTS.get(step.kind, nets._nothing)(inputs, step.numbers).eval()
    with torch.no_grad():
        return tuple(probe._run(moved, part, inputs).shape[1:])


# single operators


def _two(net: Net, low: int, high: int) -> tuple[int, int]:
    return net.pick(low, high), net.pick(low, high)


def _channels_out(net: Net, groups: int) -> int:
    return groups * net.pick(1, max(MOST_CHANNELS // 2 // groups, 1))


def conv(net: Net, x: int) -> int:
    channels, height, width = net.shapes[x]
    groups = net.choose(*[g for g in (1, 1, 1, 2, 3, 4, channels) if channels % g == 0])
    kernel, dilation, stride = _two(net, 1, 4), net.choose((1, 1), (1, 1), (2, 1), (2, 2), (3, 2)), _two(net, 1, 3)
    numbers: dict[str, Any] = {
        "out": _channels_out(net, groups),
        "kernel": kernel,
        "groups": groups,
        "bias": net.choose(True, False),
    }
    extents = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    style = net.choose("symmetric", "symmetric", "same", "padded", "valid_string")
    if style == "same" or (style == "valid_string" and (extents[0] > height or extents[1] > width)):
        return net.add("conv", x, **numbers, padding="same", dilation=dilation)
    if style == "valid_string":
        return net.add("conv", x, **numbers, padding="valid", stride=stride, dilation=dilation)
    # at least what the kernel needs to fit at all, at most its whole extent
    least = [max(0, extent - size) for extent, size in zip(extents, (height, width), strict=True)]
    if style == "symmetric":
        padding = tuple(-(-need // 2) + net.pick(0, 2) for need in least)
        return net.add("conv", x, **numbers, padding=padding, stride=stride, dilation=dilation)
    pad = (net.pick(0, 2), least[1] + net.pick(0, 2), net.pick(0, 2), least[0] + net.pick(0, 2))
    return net.add("padded_conv", x, **numbers, pad=pad, stride=stride, dilation=dilation)


def pool(net: Net, x: int) -> int:
    _, height, width = net.shapes[x]
    kernel = (min(net.pick(1, 3), height), min(net.pick(1, 3), width))
    numbers: dict[str, Any] = {
        "kernel_size": kernel,
        "stride": _two(net, 1, 3),
        "padding": tuple(net.pick(0, k // 2) for k in kernel),
        "ceil_mode": net.choose(True, False),
    }
    if net.choose("max", "avg") == "max":
        dilation = tuple(net.pick(1, 2) if 2 * (k - 1) + 1 <= s else 1 for k, s in zip(kernel, (height, width), strict=True))
        return net.add("max_pool", x, **numbers, dilation=dilation)
    return net.add(
        "avg_pool", x, **numbers, count_include_pad=net.choose(True, False), divisor_override=net.choose(None, None, 3)
    )


def adaptive(net: Net, x: int) -> int:
    _, height, width = net.shapes[x]
    return net.add("adaptive_avg_pool", x, size=(net.pick(1, min(height + 1, 9)), net.pick(1, min(width + 1, 9))))


def activation(net: Net, x: int) -> int:
    return net.add("activation", x, name=net.choose(*ACTIVATIONS))


def pointwise(net: Net, x: int) -> int:
    kind = net.choose("batch_norm", "arithmetic", "scale", "shift", "position", "prelu", "dropout", "layer_norm")
    numbers: dict[str, Any] = {}
    if kind == "arithmetic":
        numbers = {"name": net.choose(*ARITHMETIC)}
    elif kind == "dropout":
        numbers = {"spatial": net.choose(True, False)}
    elif kind in ("layer_norm", "batch_norm"):
        numbers = {"affine": net.choose(True, False)}
    return net.add(kind, x, **numbers)


def pixel_linear(net: Net, x: int) -> int:
    return net.add("pixel_linear", x, out=net.pick(1, 6), bias=net.choose(True, False))


def border(net: Net, x: int) -> int:
    _, height, width = net.shapes[x]
    kind = net.choose("pad", "pad", "crop", "signed_pad")
    if kind == "pad":
        return net.add("pad", x, pad=tuple(net.pick(0, 2) for _ in range(4)), value=net.choose(0.0, 0.0, 0.8))
    if kind == "signed_pad":
        low = [-1 if size > 3 else 0 for size in (width, width, height, height)]
        return net.add("pad", x, pad=tuple(net.pick(least, 1) for least in low), value=0.0)
    top, left = net.pick(0, height - 1), net.pick(0, width - 1)
    bottom, right = net.pick(top + 1, height), net.pick(left + 1, width)
    return net.add("crop", x, top=top, bottom=bottom, left=left, right=right)


def channels(net: Net, x: int) -> int:
    count = net.shapes[x][0]
    kind = net.choose("slice", "split", "chunk", "shuffle", "channel_shuffle")
    groups = net.choose(*[g for g in (1, 2, 3, 4) if count % g == 0])
    if kind in ("shuffle", "channel_shuffle"):
        return net.add(kind, x, groups=groups)
    if kind == "slice":
        start = net.pick(0, count - 1)
        return net.add("slice", x, start=start, stop=net.pick(start + 1, count))
    if kind == "chunk":
        chunks = net.pick(1, count)
        pieces = -(-count // -(-count // chunks))
        return net.add("chunk", x, chunks=chunks, piece=net.pick(0, pieces - 1))
    size = net.pick(1, count)
    return net.add("split", x, size=size, piece=net.pick(0, -(-count // size) - 1))


def opaque(net: Net, x: int) -> int:
    count, height, width = net.shapes[x]
    kinds = ["gate", "spatial_gate", "softmax", "group_norm"]
    kinds += ["upsample", "transposed_conv"] if 2 * max(height, width) <= LARGEST_SIDE else []
    kinds += ["reflect_pad"] if min(height, width) > 1 else []
    kinds += ["pixel_shuffle"] if count % 4 == 0 and 2 * max(height, width) <= LARGEST_SIDE else []
    kind = net.choose(*kinds)
    numbers: dict[str, Any] = {}
    if kind == "softmax":
        numbers = {"dim": net.pick(1, 3)}
    elif kind == "group_norm":
        numbers = {"groups": net.choose(*[g for g in (1, 2) if count % g == 0])}
    elif kind == "upsample":
        numbers = {"mode": net.choose("nearest", "bilinear")}
    elif kind == "transposed_conv":
        numbers = {"out": net.pick(1, 4)}
    return net.add(kind, x, **numbers)


def binary(net: Net, x: int) -> int:
    """The newest value with any other that fits; with itself when none does."""
    shape = net.shapes[x]
    same = [i for i, other in enumerate(net.shapes) if other == shape]
    beside = [i for i, other in enumerate(net.shapes) if len(other) == 3 and other[1:] == shape[1:]]
    kind = net.choose("add", "add", "sub", "mul", "concat")
    if kind != "concat":
        pair = net.draw(st.permutations([x, net.choose(*same)]))
        numbers = {"alpha": net.choose(1, 0.5)} if kind == "add" else {}
        return net.add(kind, *pair, **numbers)
    others = [net.choose(*beside) for _ in range(net.pick(1, 3))]
    parts, total = [x], shape[0]
    for other in others:
        if total + net.shapes[other][0] <= MOST_CHANNELS:
            parts.append(other)
            total += net.shapes[other][0]
    return net.add("concat", *net.draw(st.permutations(parts)))


# blocks of several operators


def chain(net: Net, x: int) -> int:
    """Cheap operators one behind another, as fusion likes them."""
    x = conv(net, x) if net.choose(True, False) else x
    for _ in range(net.pick(2, 4)):
        x = net.choose(pointwise, pointwise, activation, binary)(net, x)
    return x


def _odd(net: Net, x: int, out: int, kernel: int = 0, **numbers: Any) -> int:
    kernel = kernel or net.choose(1, 3, 5)
    return net.add("conv", x, out=out, kernel=kernel, padding=kernel // 2, bias=net.choose(True, False), **numbers)


def residual(net: Net, x: int) -> int:
    count = net.shapes[x][0]
    out, stride = net.choose((count, 1), (count, 1), (count, 1), (4, 2), (6, 1))
    y = _odd(net, x, out, 3, stride=stride)
    y = net.add("batch_norm", y) if net.choose(True, False) else y
    y = net.add("activation", y, name=net.choose("relu", "silu"))
    y = _odd(net, y, out, groups=net.choose(1, out))
    shortcut = x
    if (out, stride) != (count, 1):
        shortcut = net.add("conv", x, out=out, kernel=1, stride=stride)
    elif net.choose(True, False):
        shortcut = net.add("batch_norm", x)
    y = net.add("add", *net.draw(st.permutations([y, shortcut])))
    return net.add("activation", y, name=net.choose("relu", "leaky_relu", "gelu"))


def dense(net: Net, x: int) -> int:
    features = [x]
    for _ in range(net.pick(1, 3)):
        y = net.add("concat", *features) if len(features) > 1 else x
        if net.choose(True, False):
            y = net.add("activation", net.add("batch_norm", y), name="relu")
        features.append(_odd(net, y, 2, 3))
    return net.add("concat", *features)


def inception(net: Net, x: int) -> int:
    parts = [_odd(net, x, net.pick(1, 3), 1), net.add("activation", _odd(net, x, net.pick(1, 3), 3), name="relu")]
    kind = net.choose("max_pool", "avg_pool")
    parts.append(net.add(kind, x, kernel_size=3, stride=1, padding=1))
    if net.choose(True, False):
        inner = parts[1]
        split = [net.add("conv", inner, out=2, kernel=(2 * y + 1, 2 * x + 1), padding=(y, x)) for y, x in ((0, 1), (1, 0))]
        parts.append(net.add("concat", *split))
    if net.choose(True, False):
        parts.append(parts[0])
    return net.add("concat", *net.draw(st.permutations(parts)))


def shuffle_unit(net: Net, x: int) -> int:
    count = net.shapes[x][0]
    if count % 2:
        return conv(net, x)
    left, right = (net.add("chunk", x, chunks=2, piece=piece) for piece in (0, 1))
    half = count // 2
    right = net.add("activation", _odd(net, _odd(net, right, half, 3, groups=half), half, 1), name="relu")
    return net.add("shuffle", net.add("concat", left, right), groups=2)


def patches(net: Net, x: int) -> int:
    """Two crops of one size from different places, together again: their fields can be empty along different axes."""
    _, height, width = net.shapes[x]
    rows, columns = net.pick(1, height), net.pick(1, width)
    parts = []
    for _ in range(2):
        top, left = net.pick(0, height - rows), net.pick(0, width - columns)
        parts.append(net.add("crop", x, top=top, bottom=top + rows, left=left, right=left + columns))
    if net.choose(True, False):
        parts[0] = _odd(net, parts[0], net.shapes[x][0])
    return net.add(net.choose("add", "mul", "concat", "sub"), *parts)


BLOCKS: tuple[Callable[[Net, int], int], ...] = (
    conv, conv, conv, pool, pool, adaptive, activation, activation, pointwise, pointwise, pixel_linear, border, channels,
    binary, binary, chain, chain, patches, residual, residual, dense, inception, shuffle_unit, opaque,
)  # fmt: skip


def _head(net: Net, x: int) -> int:
    kind = net.choose("mean_head", "mean_head", "pooled_head", "flatten_head", "conv_head", "max_head")
    numbers: dict[str, Any] = {"out": net.pick(1, 4)} if kind not in ("pooled_head", "max_head") else {}
    if kind == "flatten_head":
        numbers["bias"] = net.choose(True, False)
    return net.add(kind, x, **numbers)


@dataclass(frozen=True)
class Case:
    """A network's spec and what to ask of it."""

    image: tuple[int, int, int]
    steps: tuple[Step, ...]
    seed: int
    occlusions: Occlusions
    constant_fill: bool

    def net(self) -> SpecNet:
        return SpecNet(self.image, self.steps, self.seed)

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and fill (C, H, W)."""
        generator = torch.Generator().manual_seed(self.seed)
        image = torch.randn(self.image, generator=generator)
        fill = torch.randn(self.image[0], 1, 1, generator=generator) if self.constant_fill else None
        return image, torch.randn(self.image, generator=generator) if fill is None else fill


@st.composite
def cases(draw: Draw, blocks: tuple[Callable[[Net, int], int], ...] = BLOCKS, most: int = 6) -> Case:
    """A random net with random occlusions of a random image."""
    sides = st.one_of(st.integers(5, 20), st.integers(1, 4)) if draw(st.integers(0, 5)) == 0 else st.integers(5, 20)
    image = (draw(st.integers(1, 4)), draw(sides), draw(sides))
    net = Net([image], draw)
    last = 0
    for block in draw(st.lists(st.sampled_from(blocks), min_size=1, max_size=most)):
        last = block(net, last)
        count, height, width = net.shapes[last]
        if count > MOST_CHANNELS:
            last = net.add("slice", last, start=0, stop=MOST_CHANNELS)
        if max(height, width) > LARGEST_SIDE:
            last = net.add("max_pool", last, kernel_size=2)
    _head(net, last)
    return Case(image, tuple(net.steps), draw(st.integers(0, 2**16)), draw(occlusions(image[1:])), draw(st.booleans()))


@st.composite
def occlusions(draw: Draw, size: tuple[int, int]) -> Occlusions:
    """A grid, perhaps in a region, or a few masks of any shape."""
    if draw(st.integers(0, 2)) == 0:
        return draw(mask_sets(size))
    patch = tuple(draw(st.one_of(st.integers(1, min(6, side)), st.just(side))) for side in size)
    # few enough positions that an example stays cheap
    stride = tuple(draw(st.integers(max((side - p) // 5, 1), 7)) for side, p in zip(size, patch, strict=True))
    region = None
    if draw(st.integers(0, 3)) == 0:
        corners = [draw(st.integers(0, max(side - p, 0))) // s * s for side, p, s in zip(size, patch, stride, strict=True)]
        sizes = [draw(st.integers(p, side - corner)) for side, p, corner in zip(size, patch, corners, strict=True)]
        region = (*corners, *sizes)
    return Grid(size, patch, stride, region)  # type: ignore[arg-type]


@st.composite
def mask_sets(draw: Draw, size: tuple[int, int]) -> Masks:
    """Unions of rectangles and scattered pixels."""
    masks = torch.zeros(draw(st.integers(1, 6)), *size, dtype=torch.bool)
    for mask in masks:
        for _ in range(draw(st.integers(1, 3))):
            top, left = (draw(st.integers(0, side - 1)) for side in size)
            height, width = (draw(st.integers(1, 4)) for _ in size)
            mask[top : top + height, left : left + width] = True
    return Masks(masks)
