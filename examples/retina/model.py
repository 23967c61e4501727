"""RetinaNet, the demo's classifier: a small residual CNN for 160 × 160 grey scans, and its preprocessing.

Stands alone: it needs torch and safetensors, not krypton. `train.py` makes the weights that `load` reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

LABELS = ("normal", "drusen", "fluid", "exudate")
"""Class names, in the order of the logits."""
MEAN = (0.33,)
"""Mean grey value of the training scans, of 1, subtracted first."""
STD = (0.19,)
"""Standard deviation of their grey values, of 1, divided by next."""
SIZE = 160
"""Height and width in pixels of the scans it was trained on."""


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm and a shortcut: (N, cin, H, W) → (N, cout, H / stride, W / stride)."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        y: Tensor = self.relu(x + shortcut)
        return y


class RetinaNet(nn.Module):
    """Normalised scans (N, 1, 160, 160) → logits (N, 4) in the order of LABELS. Other sizes work, untrained."""

    def __init__(self, widths: Iterable[int] = (32, 64, 128), classes: int = len(LABELS)) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(1, first, 5, 2, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(first, first), BasicBlock(first, first))
        self.layer2 = nn.Sequential(BasicBlock(first, second, 2), BasicBlock(second, second))
        self.layer3 = nn.Sequential(BasicBlock(second, third, 2), BasicBlock(third, third))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def preprocess(pixels: Tensor) -> Tensor:
    """Grey values 0 … 255 of any dtype, (N, H, W) or (H, W), → the model's float input (N or 1, 1, H, W)."""
    x = pixels.float().reshape(-1, 1, *pixels.shape[-2:]) / 255
    return (x - MEAN[0]) / STD[0]


def load(path: str | Path) -> RetinaNet:
    """The trained model in eval mode, float32 on the CPU, from a safetensors file. Raises OSError if there is none."""
    model = RetinaNet()
    model.load_state_dict(load_file(path))
    return model.eval()
