"""A heat map drawn in a terminal: one character shows two cells, one above the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style

_UPPER_HALF = "▀"
_NARROWEST = 24


def half_blocks(pixels: NDArray[np.uint8], columns: int) -> Segments:
    """A picture, uint8 (rows, columns, 3), at most `columns` characters wide; small ones are enlarged."""
    rows = [[Color.from_rgb(*pixel) for pixel in row] for row in _fitted(pixels, columns).tolist()]
    segments: list[Segment] = []
    for index in range(0, len(rows), 2):
        above = rows[index]
        # Under the last of an odd number of rows the terminal's own background shows.
        below = rows[index + 1] if index + 1 < len(rows) else [None] * len(above)
        for upper, lower in zip(above, below, strict=True):
            segments.append(Segment(_UPPER_HALF, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)


def _fitted(pixels: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    # Bounded in height too, or what is much taller than wide would scroll away.
    shrink = min(1.0, columns / max(height, width))
    if shrink < 1:
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    enlarge = max(1, min(-(-_NARROWEST // width), columns // max(height, width)))
    return pixels.repeat(enlarge, 0).repeat(enlarge, 1)
