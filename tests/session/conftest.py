"""A small CNN, a picture and a session that knows both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import krypton

LABELS = ("normal", "drusen", "fluid", "exudate")
SHAPE = (3, 20, 24)


class SmallNet(nn.Module):
    """(B, channels, H, W) to (B, 4): convolutions, a batch norm with statistics of its own, pooling."""

    def __init__(self, channels: int = 3, outputs: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv1 = nn.Conv2d(channels, 6, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
            self.fc = nn.Linear(8, outputs)
            nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)  # type: ignore[arg-type]
            nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.norm(self.conv1(x)).relu(), 2)
        y: Tensor = self.fc(self.conv2(x).relu().mean((2, 3)))
        return y


@pytest.fixture(scope="session")
def net() -> SmallNet:
    """Shared, and so captured once: tests that change a module make their own."""
    return SmallNet()


@pytest.fixture(scope="session")
def shared_session(net: SmallNet) -> Iterator[krypton.Connection]:
    with krypton.connect() as connection:
        connection.register_model("net", net, input_shape=SHAPE, mean=0.5, std=0.25, labels=LABELS)
        yield connection


@pytest.fixture
def con(shared_session: krypton.Connection) -> Iterator[krypton.Connection]:
    """A session in memory that knows `net`; tests leave no tables and settings behind."""
    yield shared_session
    for name, _ in shared_session.settings.items():
        shared_session.settings.reset(name)
    for (name,) in shared_session.sql("SHOW TABLES").fetchall():
        shared_session.sql(f'DROP TABLE "{name}"')


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """A picture of the model's size."""
    return np.random.default_rng(0).integers(0, 256, (SHAPE[1], SHAPE[2], 3), dtype=np.uint8)


@pytest.fixture
def scan(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    """The picture as a file."""
    path = tmp_path / "scan.png"
    Image.fromarray(pixels).save(path)
    return path
