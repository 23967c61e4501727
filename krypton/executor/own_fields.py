"""The field of every occlusion of a tile for itself, for kernels that leave out what lies in the tile's box but not there.

A tile's box is the union of its occlusions' fields (design, section 2). Each is a part of it: 0.4 in a ResNet50's first layer,
0.8 on 28×28 maps, all of it in the last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krypton.ir.geometry import Interval
from krypton.ir.occlusions import OcclusionTile
from krypton.operators.base import Axis
from krypton.planner.fields import Fields


class OwnFields:
    """Fields by occlusion; those of an axis are worked out once for all tiles."""

    def __init__(self, fields: Fields, device: torch.device) -> None:
        self._fields, self._device = fields, device
        self._known: dict[tuple[Axis, Interval], Tensor] = {}
        self._places: dict[int, int] = {}

    def of(self, tile: OcclusionTile) -> dict[int, Tensor]:
        """By node id, (B, 4) int64: top, bottom, left and right of the field of each of a tile's occlusions."""
        axes = [self._along(axis, tile.own[axis]) for axis in (0, 1)]
        together = torch.cat(axes, 2).transpose(0, 1).contiguous()  # (nodes, B, 4)
        return dict(zip(self._places, together.unbind(), strict=True))

    def _along(self, axis: Axis, own: tuple[Interval, ...]) -> Tensor:
        """(B, nodes, 2)"""
        distinct = {interval: place for place, interval in enumerate(dict.fromkeys(own))}
        stacked = torch.stack([self._of_interval(axis, interval) for interval in distinct])
        return stacked[torch.tensor([distinct[interval] for interval in own], device=self._device)]

    def _of_interval(self, axis: Axis, interval: Interval) -> Tensor:
        """(nodes, 2)"""
        known = self._known.get((axis, interval))
        if known is None:
            changed = self._fields.changed(axis, interval)
            self._places = self._places or {node: place for place, node in enumerate(changed)}
            known = torch.tensor([changed[node] for node in self._places], dtype=torch.int64, device=self._device)
            self._known[axis, interval] = known
        return known
