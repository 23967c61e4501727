"""Pictures: a heat map in colours, by itself or laid over the image it explains.

Colours are those of the papers. Figures are made with Matplotlib's objects, never with pyplot, whose global state
would be the caller's; Matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from krypton.results.heatmap import Heatmap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURMAP = "jet_r"
_UNKNOWN = (160, 160, 160)
_OPACITY = 0.6
_DPI = 150


@dataclass(frozen=True)
class Scale:
    """The scores that the ends of the colour map stand for: red at `low`, blue at `high`; what is beyond is clipped."""

    low: float
    high: float


def scale_of(heatmap: Heatmap) -> Scale:
    """[0.75 p, min(1, 1.25 p)] for probabilities, p the base score; else symmetric around it, to the farthest."""
    base = heatmap.base_score
    if heatmap.score_kind == "probability" and heatmap.activation != "none":
        low, high = 0.75 * base, min(1.0, 1.25 * base)
    else:
        known = heatmap.heatmap[heatmap.known.numpy()]
        reach = float(np.abs(known - base).max()) if known.size else 0.0
        low, high = base - reach, base + reach
    # A constant map, or a probability of 0, would leave no range to divide by.
    least = 1e-6 * max(1.0, abs(base)) if high == low else 0.0
    return Scale(low - least, high + least)


def colourise(scores: NDArray[np.float32], scale: Scale) -> NDArray[np.uint8]:
    """Scores of any shape in colours, uint8 (*shape, 3); NaN becomes gray."""
    import matplotlib

    position = (np.asarray(scores, dtype=np.float64) - scale.low) / (scale.high - scale.low)
    colours = matplotlib.colormaps[_COLOURMAP](np.clip(position, 0, 1), bytes=True)[..., :3].copy()
    colours[np.isnan(position)] = _UNKNOWN
    return np.asarray(colours, dtype=np.uint8)


def render(heatmap: Heatmap) -> NDArray[np.uint8]:
    """The bare map in colours, uint8 (rows, columns, 3), a cell per position; for masks (H, W, 3), a cell per pixel."""
    return colourise(paint(heatmap)[0] if heatmap.masks is not None else heatmap.heatmap, scale_of(heatmap))


def paint(heatmap: Heatmap) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The scores laid out on the image, float32 (H, W), NaN where not known; and bool (H, W), what the map covers.

    A cell of a grid lies around the centre of its patch, halfway to its neighbours. A pixel of several masks has their
    mean.
    """
    if heatmap.masks is not None:
        # The mean drop per pixel is the base less the mean score.
        return np.float32(heatmap.base_score) - heatmap.per_pixel(), heatmap.masks.any(0).numpy()
    positions = heatmap.positions.double().numpy()
    # (start, size) of rows down the first column of the grid, and of columns along its first row.
    row_of = _nearest(positions[:, 0, 0], positions[:, 0, 2], heatmap.image_size[0])
    column_of = _nearest(positions[0, :, 1], positions[0, :, 3], heatmap.image_size[1])
    inside = (row_of >= 0)[:, None] & (column_of >= 0)
    painted = heatmap.heatmap[row_of[:, None], column_of]
    painted[~inside] = np.nan
    return painted, inside


def overlay_figure(heatmap: Heatmap) -> Figure:
    """A new figure: on the left the image, on the right the map laid over it in gray, with a colour bar."""
    from matplotlib.figure import Figure

    height, width = heatmap.image_size
    # Two panels about 4 inches on the longer side, and room for titles and the colour bar.
    tall, wide = (4.0 * side / max(height, width) for side in (height, width))
    figure = Figure(figsize=(2 * max(wide, 2.0) + 1.2, max(tall, 2.2) + 0.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    image = _shown(heatmap)
    left.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    left.set_title(_short(Path(heatmap.image.name).name, 40), fontsize=10, parse_math=False)
    left.set_axis_off()
    draw_overlay(heatmap, right)
    return figure


def draw_overlay(heatmap: Heatmap, ax: Axes) -> None:
    """Draw the map over the image in gray into `ax`, with the most sensitive position, a title and a colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    image = _shown(heatmap)
    gray = image if image.ndim == 2 else image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    ax.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    scale = scale_of(heatmap)
    painted, inside = paint(heatmap)
    opacity = np.where(inside, np.uint8(255 * _OPACITY), np.uint8(0))
    ax.imshow(np.dstack((colourise(painted, scale), opacity)), interpolation="nearest")
    ax.autoscale(False)  # marks must not widen the view beyond the image
    _mark_most_sensitive(heatmap, ax)
    ax.set_axis_off()
    ax.set_title(_title(heatmap), fontsize=10, parse_math=False)

    mappable = ScalarMappable(Normalize(scale.low, scale.high), cmap=_COLOURMAP)
    # Inside the axes' own box, so that the bar is as tall as the image; pointed where scores lie beyond the scale.
    bar = ax.figure.colorbar(mappable, cax=ax.inset_axes((1.03, 0, 0.045, 1)), extend=_beyond(heatmap, scale))
    what = "mask" if heatmap.masks is not None else "patch"
    bar.set_label(f"{heatmap.score_kind} with the {what} here (line: without)\nred: occluding here hurts", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    # The unmodified score; for probabilities it is not in the middle of the bar.
    bar.ax.axhline(heatmap.base_score, color="white", linewidth=2.5)
    bar.ax.axhline(heatmap.base_score, color="black", linewidth=1)


def png(heatmap: Heatmap) -> bytes:
    """The figure of `overlay_figure` as the bytes of a PNG file."""
    buffer = io.BytesIO()
    save_figure(heatmap, buffer, "png")
    return buffer.getvalue()


def save_figure(heatmap: Heatmap, file: IO[bytes], kind: str) -> None:
    """Write the figure of `overlay_figure` to an open file; `kind` is "png" or "svg"."""
    with warnings.catch_warnings():
        # Labels may have letters that Matplotlib's font lacks: boxes in a picture are no reason to fail or to nag.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        overlay_figure(heatmap).savefig(file, format=kind, dpi=_DPI)


def _nearest(start: NDArray[np.float64], size: NDArray[np.float64], pixels: int) -> NDArray[np.int64]:
    """For each pixel along an axis the cell that it belongs to, or -1 beyond the outermost cells."""
    centres = start + size / 2
    if len(centres) == 1:
        edges = np.array([start[0], start[0] + size[0]])
    else:
        middles = (centres[1:] + centres[:-1]) / 2
        edges = np.concatenate(([2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]))
    cell = np.searchsorted(edges, np.arange(pixels) + 0.5, side="right") - 1
    return np.where(cell < len(centres), cell, -1)


def _beyond(heatmap: Heatmap, scale: Scale) -> str:
    """Matplotlib's name for the ends of the scale that some score exceeds."""
    known = heatmap.heatmap[heatmap.known.numpy()]
    below, above = bool((known < scale.low).any()), bool((known > scale.high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def _mark_most_sensitive(heatmap: Heatmap, ax: Axes) -> None:
    from matplotlib.patches import Rectangle

    if not heatmap.known.any():
        return
    if heatmap.masks is not None:
        outline = heatmap.masks[heatmap.most_sensitive_index].float().numpy()
        for colour, linewidth in (("black", 2.5), ("white", 1.2)):
            # A border of zeros, so that outlines close where a mask touches the image's border.
            grid = [np.arange(-1, side + 1) for side in outline.shape]
            ax.contour(grid[1], grid[0], np.pad(outline, 1), [0.5], colors=colour, linewidths=linewidth)
        return
    top, left, height, width = heatmap.most_sensitive
    for colour, linewidth in (("black", 2.5), ("white", 1.2)):
        # A pixel's centre is at whole coordinates, so its edges are at halves.
        corner = (left - 0.5, top - 0.5)
        ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=linewidth))


def _title(heatmap: Heatmap) -> str:
    title = f"{_short(heatmap.label, 40)!r}   {heatmap.score_kind} {heatmap.base_score:.3g}"
    if not heatmap.complete:
        title += f"\n{int(heatmap.known.sum()):,} of {heatmap.known.numel():,} positions"
    return title


def _shown(heatmap: Heatmap) -> NDArray[Any]:
    """The image for imshow: (H, W, 3), or (H, W) when it has not three channels, float in [0, 1]."""
    tensor = heatmap.image.pixels
    if tensor is None:
        values = heatmap.image.input
        low, high = values.min(), values.max()
        tensor = (values - low) / (high - low) if high > low else values * 0 + 0.5
    if tensor.shape[0] == 3:
        return np.asarray(tensor.permute(1, 2, 0).numpy())
    return np.asarray(tensor.mean(0).numpy())


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" …") if " " in text else text[:width]
