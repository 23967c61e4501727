"""Heat maps to try things on, made without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from krypton.images import Preprocessing, load_image
from krypton.results import Heatmap


@pytest.fixture
def make_heatmap() -> Callable[..., Heatmap]:
    """Makes a heat map of random logits: three classes, 24×32 pixels, patch 6×8, stride 3×4, unless said else."""

    def make(
        size: tuple[int, int] = (24, 32),
        patch: tuple[int, int] = (6, 8),
        stride: tuple[int, int] = (3, 4),
        classes: int = 3,
        masks: torch.Tensor | None = None,
        seed: int = 0,
        **fields: Any,
    ) -> Heatmap:
        generator = torch.Generator().manual_seed(seed)
        preprocessing = Preprocessing(3, *size, (0.5,) * 3, (0.25,) * 3)
        picture = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8).numpy()
        image = load_image(picture, preprocessing, max_pixels=1_000_000)
        if masks is None:
            tops = torch.arange(0, size[0] - patch[0] + 1, stride[0])
            lefts = torch.arange(0, size[1] - patch[1] + 1, stride[1])
            top, left = torch.meshgrid(tops, lefts, indexing="ij")
            height, width = torch.full_like(top, patch[0]), torch.full_like(top, patch[1])
            positions = torch.stack((top, left, height, width), dim=-1)
        else:
            positions = torch.stack([_bounding_box(mask) for mask in masks])
        base = torch.randn(classes, generator=generator)
        logits = base + torch.randn(*positions.shape[:-1], classes, generator=generator)
        known = fields.pop("known", torch.ones(positions.shape[:-1], dtype=torch.bool))
        logits[~known] = torch.nan
        values: dict[str, Any] = {
            "logits": logits,
            "base_logits": base,
            "positions": positions,
            "masks": masks,
            "image": image,
            "image_size": size,
            "target": 0,
            "activation": "softmax" if classes > 1 else "sigmoid",
            "known": known,
        }
        return Heatmap(**(values | fields))

    return make


@pytest.fixture
def overlapping_masks() -> torch.Tensor:
    """Five masks on 24×32 pixels that overlap here and there and leave pixels uncovered."""
    masks = torch.zeros(5, 24, 32, dtype=torch.bool)
    masks[0, :10, :10], masks[1, 5:15, 5:20], masks[2, 12:, 25:], masks[3, 7, ::3], masks[4, 20:22, 2:9] = (True,) * 5
    return masks


def _bounding_box(mask: torch.Tensor) -> torch.Tensor:
    rows, columns = mask.nonzero(as_tuple=True)
    top, left = rows.min(), columns.min()
    return torch.stack((top, left, rows.max() - top + 1, columns.max() - left + 1))
