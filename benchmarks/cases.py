"""What benchmarks run on: torchvision models with random weights, one photo, patch 16 and stride 4; and evenly drawn items."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.clock import timed

if TYPE_CHECKING:
    from krypton.ir.occlusions import Grid
    from krypton.planner.capture import CapturedModel

PATCH, STRIDE = (16, 16), (4, 4)

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One model at one input size."""

    name: str
    size: int

    @classmethod
    def parse(cls, text: str) -> Case:
        """`model@size`; without a size, the model's usual one."""
        name, _, size = text.partition("@")
        return cls(name, int(size or (299 if name == "inception_v3" else 224)))

    def __str__(self) -> str:
        return f"{self.name}@{self.size}"


class Subject:
    """A case made ready: model in both memory formats, image and fill, captured graph; each made when first asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.image = photo(case.size)
        self.fill = torch.zeros_like(self.image)

    @cached_property
    def model(self) -> nn.Module:
        return build(self.case)

    @cached_property
    def channels_last(self) -> nn.Module:
        return copy.deepcopy(self.model).to(memory_format=torch.channels_last)

    @cached_property
    def captured_in(self) -> tuple[CapturedModel, float]:
        """The graph, and the seconds that capture took."""
        from krypton.planner.capture import capture

        return timed(lambda: capture(self.model, (3, self.case.size, self.case.size)))

    @property
    def captured(self) -> CapturedModel:
        return self.captured_in[0]

    @property
    def grid(self) -> Grid:
        from krypton.ir.occlusions import Grid

        return Grid((self.case.size, self.case.size), PATCH, STRIDE)

    def images(self, count: int, memory_format: torch.memory_format) -> Tensor:
        return self.image.expand(count, -1, -1, -1).contiguous(memory_format=memory_format)


def build(case: Case) -> nn.Module:
    """A model of torchvision (`timm:name` for timm's) with random weights and sane activations: batch norms are calibrated on
    the photo."""
    import torchvision

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.name.startswith("timm:"):
            import timm

            model: nn.Module = timm.create_model(case.name.removeprefix("timm:"))
        else:
            model = torchvision.models.get_model(case.name, weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None
        model.train()
        with torch.no_grad():
            x = photo(min(case.size, 299))
            model(torch.stack([x, x.flip(2), x.flip(1), x + 0.3 * torch.randn_like(x)]))
    return model.eval()


def photo(size: int) -> Tensor:
    """A real photo (3, size, size), normalised as ImageNet models want it."""
    from skimage import data, transform

    resized = transform.resize(data.astronaut(), (size, size), anti_aliasing=True)  # type: ignore[no-untyped-call]
    pixels = torch.from_numpy(resized).float().permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def even(items: Sequence[T], count: int) -> list[T]:
    """So many items, one from each of as many equal parts of the sequence, at random places, the same ones every time.

    Tiles are listed row by row: equal steps could land in the same column every time, and that at the border.
    """
    count = min(count, len(items))
    draw = random.Random(0)
    return [items[int((i + draw.random()) * len(items) / count)] for i in range(count)]
