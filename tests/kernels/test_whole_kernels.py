"""Compiled kernels on whole values against PyTorch: convolutions, sums and gates, from inputs in any memory."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from support.deltas import noise
from torch import Tensor

from krypton.ir.delta import Gated
from krypton.ir.graph import Epilogue, Function, Node, Term
from krypton.kernels import find, native
from krypton.kernels.whole import able_whole, build_whole, gated, whole_kernel
from krypton.operators.functions import evaluate

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")

CPU = torch.device("cpu")
CHANNELS = st.sampled_from([1, 2, 3, 5, 16, 17, 33])
FUNCTIONS = [
    None,
    *(Function(name) for name in ("relu", "silu", "hardswish", "sigmoid", "gelu")),
    Function("clamp", (0.0, 6.0)),
]


def value(draw, batch: int, channels: int, height: int, width: int) -> Tensor:
    """A map as PyTorch may have left it: either layout, some channels of more, one for all occlusions."""
    if draw(st.booleans()):
        batch = 1
    kind = draw(st.sampled_from(["innermost", "outermost", "slice"]))
    wider = channels + 3 if kind == "slice" else channels
    whole = noise(draw, batch, wider, height, width)
    if kind != "outermost":
        whole = whole.contiguous(memory_format=torch.channels_last)
    return whole[:, 1 : 1 + channels] if kind == "slice" else whole


def epilogue(draw, channels: int, first: int, further: int) -> tuple[Epilogue | None, dict[str, Tensor]]:
    """Terms from input `first` on, with scales and shifts or without; now and then none at all."""
    weights: dict[str, Tensor] = {}
    terms = []
    for place in ([-1] if first else []) + list(range(first, first + further)):
        names = [f"{kind} {place}" if draw(st.booleans()) else None for kind in ("scale", "shift")]
        weights |= {name: noise(draw, channels) for name in names if name}
        terms.append(Term(place, *names))
    function = draw(st.sampled_from(FUNCTIONS))
    if first and not further and draw(st.booleans()):
        return None, {}
    return Epilogue(tuple(terms), function), weights


def expected(node: Node, own: Tensor | None, inputs: list[Tensor], weights: dict[str, Tensor]) -> Tensor:
    if node.epilogue is None:
        assert own is not None
        return own
    total = torch.zeros((), dtype=torch.float64)
    for term in node.epilogue.terms:
        part = own if term.input < 0 else inputs[term.input].double()
        assert part is not None
        if term.scale:
            part = part * weights[term.scale].double()[:, None, None]
        if term.shift:
            part = part + weights[term.shift].double()[:, None, None]
        total = total + part
    return evaluate(node.function, total)


def check(node: Node, inputs: list[Tensor], weights: dict[str, Tensor], wanted: Tensor) -> None:
    kernel = whole_kernel(node)
    assert kernel is not None
    before = [part.clone() for part in inputs]
    found = build_whole(kernel, node, weights.__getitem__)(inputs, None)
    assert isinstance(found, Tensor)
    assert all(torch.equal(part, earlier) for part, earlier in zip(inputs, before, strict=True))
    batch = max(len(part) for part in inputs)
    wanted = wanted.expand(batch, *node.shape)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-5 * (float(wanted.abs().max()) + 1.0))


@settings(max_examples=300)
@given(st.data())
def test_convolutions_with_fused_endings_are_pytorchs(data: st.DataObject) -> None:
    draw = data.draw
    batch, into, out = draw(st.integers(1, 4)), draw(CHANNELS), draw(CHANNELS)
    if depthwise := draw(st.booleans()):
        out = into
    kernel = draw(st.sampled_from([[1, 1], [3, 3], [5, 5], [1, 3], [2, 4]]))
    stride, padding = [draw(st.integers(1, 2)) for _ in range(2)], [draw(st.integers(0, 2)) for _ in range(4)]
    height, width = draw(st.integers(5, 12)), draw(st.integers(5, 12))
    top, bottom, left, right = padding
    weights = {"w": noise(draw, out, 1 if depthwise else into, *kernel), "b": noise(draw, out)}
    named = {"weight": "w"} | ({"bias": "b"} if draw(st.booleans()) else {})
    source = value(draw, batch, into, height, width)
    groups = into if depthwise else 1
    padded = F.pad(source.double(), (left, right, top, bottom))
    own = F.conv2d(padded, weights["w"].double(), weights["b"].double() if "bias" in named else None, stride, 0, 1, groups)
    end, scales = epilogue(draw, out, 1, draw(st.integers(0, 2)))
    further = [value(draw, batch, out, *own.shape[2:]) for term in end.terms if term.input >= 0] if end else []
    attrs = {"kernel": kernel, "stride": stride, "dilation": [1, 1], "padding": padding, "groups": groups, "in_channels": into}
    node = Node(1, "conv", tuple(range(1 + len(further))), (out, *own.shape[2:]), attrs, named, epilogue=end)
    node = Node(**(vars(node) | {"kernel": able_whole(node, CPU)[0].name}))
    assert node.kernel
    check(node, [source, *further], weights | scales, expected(node, own, [source, *further], scales))


@settings(max_examples=150)
@given(st.data())
def test_sums_are_pytorchs(data: st.DataObject) -> None:
    draw = data.draw
    batch, channels, height, width = draw(st.integers(1, 4)), draw(CHANNELS), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    end, weights = epilogue(draw, channels, 0, count := draw(st.integers(1, 3)))
    inputs = [value(draw, batch, channels, height, width) for _ in range(count)]
    node = Node(1, "combine", tuple(range(count)), (channels, height, width), epilogue=end, kernel="native")
    check(node, inputs, weights, expected(node, None, inputs, weights))


@settings(max_examples=100)
@given(st.data())
def test_gates_are_multiplied_as_they_are_read(data: st.DataObject) -> None:
    draw = data.draw
    batch, into, out, side = draw(st.integers(1, 4)), draw(CHANNELS), draw(CHANNELS), draw(st.integers(1, 9))
    into = into if draw(st.booleans()) else 300  # more than one block of channels
    source, gate = value(draw, batch, into, side, side), value(draw, batch, into, 1, 1)
    weight, stride = noise(draw, out, into, 1, 1) / into**0.5, draw(st.integers(1, 2))
    wanted = F.conv2d(source.double() * gate.double(), weight.double(), None, stride)
    attrs = {"kernel": [1, 1], "stride": [stride] * 2, "dilation": [1, 1], "padding": [0] * 4, "groups": 1, "in_channels": into}
    for name, tolerance in (("direct", 1e-5), ("bfloat16", 2e-2)):
        node = Node(1, "conv", (0,), (out, *wanted.shape[2:]), attrs, {"weight": "w"}, kernel=name)
        if not find("conv", name).supports(node, CPU):
            continue
        factors = gated([source, gate])
        assert isinstance(factors, Gated)
        found = build_whole(find("conv", name), node, lambda reference: weight)([factors], None)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * (float(wanted.abs().max()) + 1.0))


def test_what_no_kernel_does_is_left_to_pytorch() -> None:
    attrs = {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1] * 4, "groups": 2, "in_channels": 4}
    grouped = Node(1, "conv", (0,), (4, 8, 8), attrs, {"weight": "w"})
    vector = Node(1, "combine", (0,), (4,), epilogue=Epilogue((Term(0),), Function("relu")))
    strange = Node(1, "combine", (0,), (4, 8, 8), epilogue=Epilogue((Term(0),), Function("mish")))
    scale = Node(1, "combine", (0,), (4, 8, 8), epilogue=Epilogue((Term(0, "s"),)))
    for node in (grouped, vector, strange, scale, Node(1, "max_pool", (0,), (4, 8, 8)), Node(1, "opaque", (0,), (4, 8, 8))):
        assert able_whole(node, CPU) == []
        assert whole_kernel(node) is None
    relu = Node(1, "combine", (0,), (4, 8, 8), epilogue=Epilogue((Term(0),), Function("relu")))
    assert [kernel.name for kernel in able_whole(relu, CPU)] == ["native"]
    assert able_whole(relu, torch.device("meta")) == []
    for kernel in ("", "deferred", "reference", "onednn+native"):
        assert whole_kernel(Node(1, "conv", (0,), (4, 8, 8), attrs | {"groups": 1}, {"weight": "w"}, kernel=kernel)) is None
