"""A small model for the tests of the command line, the query they ask, and how to read a screen."""

from __future__ import annotations

import io
import signal

import torch
from rich.console import Console
from torch import Tensor, nn

LABELS = ("cat", "dog", "o'possum")
# Naive: these tests are about what is seen, and capturing a model takes seconds.
QUERY = "EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net PATCH 8 STRIDE 4 MODE NAIVE WITH (batch => 4)"


class Net(nn.Module):
    """Three classes of 24×24 pixels. At the call number `interrupt_at` it sends the process what Ctrl-C sends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22 * 22, 3))
        self.interrupt_at = 0
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)
        y: Tensor = self.layers(x)
        return y


def written(console: Console) -> str:
    """What a console of `make_screen` has written."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
