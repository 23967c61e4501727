"""Occlusions of one image: as deltas on a tile's box, mask · (fill − x), or as whole occluded images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from krypton.ir.delta import Box, Delta
from krypton.ir.geometry import Interval, hull, make
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

    def trimmed(self, tiles: Sequence[OcclusionTile]) -> tuple[list[OcclusionTile], list[int]]:
        """The tiles with every occlusion shrunk to the pixels that it changes, and the occlusions that change none.

        The fill may equal the image: black patches on a black background.
        """
        changed = (self._change != 0).any(-1)
        if bool(changed.all()):
            return list(tiles), []
        kept, unchanged = [], []
        for tile in tiles:
            rows, columns = tile.rows, tile.columns
            occluded = self.masks(tile.indices, Box(rows, columns)).bool()
            inside = occluded & changed[rows.start : rows.stop, columns.start : columns.stop]
            part, without = _shrunk(tile, inside.cpu())
            unchanged += without
            kept += [part] if part is not None else []
        return kept, unchanged

    def images(self, indices: Sequence[int]) -> Tensor:
        """Whole occluded images (B, C, H, W), channels innermost in memory."""
        _, height, width = self.image.shape
        masks = self.masks(indices, _whole(height, width)).bool()[:, None]
        return torch.where(masks, self.fill, self.image).contiguous(memory_format=torch.channels_last)


def _shrunk(tile: OcclusionTile, inside: Tensor) -> tuple[OcclusionTile | None, list[int]]:
    """A tile whose occlusions change the pixels `inside` (B, h, w) alone, None when none does any; and those that do not."""
    own: tuple[list[Interval], list[Interval]] = ([], [])
    for axis, start in ((0, tile.rows.start), (1, tile.columns.start)):
        hit = inside.any(2 - axis).to(torch.uint8)  # (B, h) or (B, w)
        size = hit.shape[1]
        firsts, lasts = hit.argmax(1).tolist(), (size - hit.flip(1).argmax(1)).tolist()
        own[axis].extend(make(start + first, start + last) for first, last in zip(firsts, lasts, strict=True))
    changing = inside.flatten(1).any(1).tolist()
    without = [index for index, any_at_all in zip(tile.indices, changing, strict=True) if not any_at_all]
    if not any(changing):
        return None, without
    indices = tuple(index for index, any_at_all in zip(tile.indices, changing, strict=True) if any_at_all)
    rows, columns = (tuple(i for i, any_at_all in zip(axis, changing, strict=True) if any_at_all) for axis in own)
    return OcclusionTile(indices, hull(*rows), hull(*columns), (rows, columns)), without


def _whole(height: int, width: int) -> Box:
    return Box(Interval(0, height), Interval(0, width))
