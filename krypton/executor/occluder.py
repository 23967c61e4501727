"""Occlusions of one image: as deltas on a tile's box, mask · (fill − x), or as whole occluded images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval
from krypton.ir.occlusions import Masks, Occlusions, OcclusionTile


class Occluder:
    """`image` and `fill` are (C, H, W), in the model's input space and on its device."""

    def __init__(self, occlusions: Occlusions, image: Tensor, fill: Tensor) -> None:
        self.occlusions = occlusions
        self.image = image
        self.fill = fill
        self._change = (fill - image).permute(1, 2, 0).contiguous()
        self._rectangles = occlusions.rectangles().reshape(-1, 4).to(image.device)
        self._masks = occlusions.masks.to(image.device) if isinstance(occlusions, Masks) else None

    def delta(self, tile: OcclusionTile) -> Delta:
        """The occlusions of a tile, (B, C, h, w) on its box."""
        rows, columns = tile.rows, tile.columns
        change = self._change[rows.start : rows.stop, columns.start : columns.stop]
        masks = self.masks(tile.indices, Box(rows, columns))
        data = change[None] * masks[..., None]
        return Delta(data.permute(0, 3, 1, 2), rows.start, columns.start, Box(rows, columns))

    def masks(self, indices: Sequence[int], box: Box) -> Tensor:
        """(B, h, w) float: 1 where occluded, on a box of the image."""
        chosen = torch.tensor(indices, device=self.image.device)
        rows, columns = box
        if self._masks is not None:
            return self._masks[chosen, rows.start : rows.stop, columns.start : columns.stop].to(self.image.dtype)
        inside = []
        for axis, interval in enumerate((rows, columns)):
            places = torch.arange(interval.start, interval.stop, device=self.image.device)
            start = self._rectangles[chosen, axis, None]
            inside.append((places >= start) & (places < start + self._rectangles[chosen, 2 + axis, None]))
        return (inside[0][:, :, None] & inside[1][:, None, :]).to(self.image.dtype)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Whole occluded images (B, C, H, W), channels innermost in memory."""
        _, height, width = self.image.shape
        masks = self.masks(indices, _whole(height, width)).bool()[:, None]
        return torch.where(masks, self.fill, self.image).contiguous(memory_format=torch.channels_last)


def _whole(height: int, width: int) -> Box:
    return Box(Interval(0, height), Interval(0, width))
