"""Sensitivities from one backward pass: against errors that are really made, one layer at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from krypton.executor.sensitivity import sensitivities
from krypton.ir.graph import Graph, Node
from krypton.ir.weights import WeightStore
from krypton.planner.capture import capture
from krypton.planner.whole import WholeBatch, run_node

ERROR = 1e-3


class Net(nn.Module):
    """Strides, groups, padding on one side, a residual and a function after its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.last = nn.Conv2d(16, 32, 2)
        self.classes = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.grouped(x)).relu()
        y: Tensor = self.classes(self.last(nn.functional.pad(x, (1, 0, 1, 0))).relu().mean((2, 3)))
        return y


def probability(logits: Tensor) -> Tensor:
    return logits.softmax(1)[:, :1]


def with_errors(graph: Graph, store: WeightStore, images: Tensor, noisy: Node, seed: int) -> Tensor:
    """Logits, one convolution's change being off by a share of what its products add up to, as low precision makes it."""
    values, batch = {graph.image.id: images}, WholeBatch(len(images), images.device, store.get)
    for node in graph.nodes[1:]:
        values[node.id] = run_node(node, [values[source] for source in node.inputs], batch)[1]
        if node.id == noisy.id:
            change, top, left = values[noisy.inputs[0]] - values[noisy.inputs[0]][:1], *node.attrs["padding"][:2]
            squares = nn.functional.conv2d(
                nn.functional.pad(change.square(), (left, node.attrs["padding"][3], top, node.attrs["padding"][1])),
                store.get(node.weights["weight"]).square(),
                stride=node.attrs["stride"],
                groups=node.attrs["groups"],
            )
            noise = torch.randn(squares.shape, generator=torch.Generator().manual_seed(seed))
            values[node.id] = values[node.id] + ERROR * squares.sqrt() * noise
    return values[graph.output]


def test_they_are_the_errors_that_layers_cause() -> None:
    torch.manual_seed(0)
    captured = capture(Net().eval(), (3, 24, 24))
    graph, store = captured.graph, captured.weights
    image = torch.randn(3, 24, 24)
    images = image.repeat(4, 1, 1, 1)
    for place, start in enumerate((2, 8, 14), 1):
        images[place, :, start : start + 8, start : start + 8] = 0
    plain = [node for node in graph if node.op == "conv" and node.epilogue is None]
    found = sensitivities(graph, store.get, images.clone(), probability, [node.id for node in plain])
    assert len(found) == 3
    for node in plain:
        exact = probability(with_errors(graph, store, images, node, 0) * 0 + _logits(graph, store, images))
        offs = [probability(with_errors(graph, store, images, node, seed)) - exact for seed in range(200)]
        off = torch.stack(offs)[:, 1:].square().mean(0).sum().sqrt()
        measured = float(off / (exact[1:] - exact[:1]).square().sum().sqrt()) / ERROR
        assert found[node.id] == pytest.approx(measured, rel=0.25)


def _logits(graph: Graph, store: WeightStore, images: Tensor) -> Tensor:
    values, batch = {graph.image.id: images}, WholeBatch(len(images), images.device, store.get)
    for node in graph.nodes[1:]:
        values[node.id] = run_node(node, [values[source] for source in node.inputs], batch)[1]
    return values[graph.output]


def test_where_nothing_changes_nothing_matters() -> None:
    captured = capture(Net().eval(), (3, 24, 24))
    convolutions = [node.id for node in captured.graph if node.op == "conv"]
    images = torch.zeros(2, 3, 24, 24)
    found = sensitivities(captured.graph, captured.weights.get, images, probability, convolutions)
    assert found == dict.fromkeys(convolutions, 0.0)
    assert not any(math.isnan(value) for value in found.values())
