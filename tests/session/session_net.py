"""The CNN of the session's tests, and a query."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import krypton

LABELS = ("normal", "drusen", "fluid", "exudate")
SHAPE = (3, 20, 24)

SMALL = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 6x8 STRIDE 4"


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


class Steep(SmallNet):
    """The same with answers that depend on the image enough for maps that are not flat."""

    def forward(self, x: Tensor) -> Tensor:
        return 12 * super().forward(x)


def pictures(count: int) -> list[np.ndarray[Any, Any]]:
    """Smooth pictures with one bright spot each, (20, 24, 3)."""
    rows, columns = np.mgrid[:20, :24]
    spots = [(5 + 3 * (number % 4), 6 + 4 * (number % 3)) for number in range(count)]
    heights = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 12) for y, x in spots]
    return [np.repeat((40 + 200 * height[..., None]).astype(np.uint8), 3, 2) for height in heights]


def run(con: krypton.Connection, text: str, **params: Any) -> Any:
    """The answer of a query."""
    return con.sql(text, params).run()
