"""Heatmap: what a query answers. The logits of every class for every occlusion, and all that is derived from them.

Made by the session from what the executor streams; `scores` turns logits into a map, `pictures` into colours, `tables`
into rows, `files` writes it, `quality` compares two.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krypton.errors import BindError, ExecutionError, unknown
from krypton.images import LoadedImage
from krypton.results.classes import find_class, label_of
from krypton.results.scores import SCORE_KINDS, Activation, ScoreKind, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from krypton.results.quality import MeasuredQuality


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Approximate `logits` (n, K) of the positions at `indices` (n,) of the flattened grid, which are exact by now."""

    indices: Tensor
    logits: Tensor

    @classmethod
    def together(cls, parts: Sequence[HeldOut]) -> HeldOut | None:
        """One of several; None of none."""
        if not parts:
            return None
        return cls(torch.cat([part.indices for part in parts]), torch.cat([part.logits for part in parts]))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Heatmap:
    """The answer to EXPLAIN OCCLUSION, complete or, while it is streamed, in part.

    A query with a patch has a grid of positions, (rows, columns); one with masks a list of n. "Grid" is either below.

    - logits: float32 (*grid, K), interpolated where not known yet, NaN where there is nothing to do so from (masks);
      base_logits: float32 (K,), of the unmodified image
    - positions: int64 (*grid, 4), the rectangles (top, left, height, width) in pixels of the model's input; for masks
      their bounding boxes
    - masks: bool (n, H, W), or None for a grid of patches
    - image: what was explained; image_size: (H, W) of the model's input
    - target: the class that is shown; labels: the names of all classes, or None
    - score_kind, activation: what a score is, see `scores.score`
    - known: bool (*grid), True where the run has an answer. False where a later map of the run will say another, for the
      value is merely interpolated between what is known so far
    - exact: bool (*grid), True where they were computed exactly, with nothing approximate in between
    - held_out: what an approximate answer had said where exact values were then computed to measure it; see `quality`
    - info: whatever the session says about the run: seconds, model, statement, plan, and `warnings`, which `repr` shows
    """

    logits: Tensor
    base_logits: Tensor
    positions: Tensor
    image: LoadedImage
    image_size: tuple[int, int]
    target: int
    activation: Activation
    known: Tensor
    masks: Tensor | None = None
    labels: tuple[str, ...] | None = None
    score_kind: ScoreKind = "probability"
    exact: Tensor = None  # type: ignore[assignment]  # becomes `known`
    held_out: HeldOut | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.exact is None:
            object.__setattr__(self, "exact", self.known)

    @property
    def heatmap(self) -> NDArray[np.float32]:
        """The class's score with the occlusion there, float32 (rows, columns) or (n,); NaN where `logits` are."""
        return np.array(self._scores.numpy())

    @property
    def base_score(self) -> float:
        """The class's score on the unmodified image."""
        return float(score(self.base_logits, self.target, self.score_kind, self.activation))

    def drop(self) -> NDArray[np.float32]:
        """How much the score falls when the occlusion is there, base - heatmap; negative where it rises."""
        return np.float32(self.base_score) - self.heatmap

    def per_pixel(self) -> NDArray[np.float32]:
        """The drop per pixel, float32 (H, W): the mean over the occlusions with a value that cover it, NaN where none does."""
        drops = self.drop().ravel()
        chosen = np.isfinite(drops)
        if self.masks is not None:
            return _mean_over_masks(drops[chosen], self.masks[torch.from_numpy(chosen)])
        boxes = self.positions.reshape(-1, 4).numpy()[chosen]
        return _mean_over_boxes(drops[chosen], boxes, self.image_size)

    @property
    def predicted(self) -> int:
        """The class with the highest logit on the unmodified image; 0 for a model of one output."""
        return int(self.base_logits.argmax())

    @property
    def label(self) -> str:
        """The name of the class that is shown, or `class 3` when the classes have no names."""
        return label_of(self.target, self.labels, len(self.base_logits))

    @property
    def complete(self) -> bool:
        """Whether the whole map is known."""
        return bool(self.known.all())

    @cached_property
    def quality(self) -> MeasuredQuality | None:
        """How good a map of MODE APPROXIMATE is, measured on its held out positions; None where all that is known is exact."""
        from krypton.results import quality

        rough = self.info.get("approximations") and not bool(self.exact[self.known].all())
        return quality.measured(self) if rough else None

    @property
    def most_sensitive(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the occlusion with the greatest drop; ExecutionError when none is known."""
        top, left, height, width = self.positions.reshape(-1, 4)[self.most_sensitive_index].tolist()
        return top, left, height, width

    @property
    def most_sensitive_index(self) -> int:
        """The flat index, row by row, of the known occlusion with the greatest drop."""
        if not self.known.any():
            raise ExecutionError("no position of this heat map has been computed yet")
        return int(np.nanargmax(np.where(self.known.numpy(), self.drop(), np.nan)))

    def for_class(self, which: str | int) -> Heatmap:
        """The map of another class, by label or index, from the same run; raises BindError with the nearest label."""
        return replace(self, target=find_class(which, self.labels, len(self.base_logits)))

    def with_score(self, kind: str) -> Heatmap:
        """The map in another score, "probability", "logit" or "margin", from the same run; raises BindError."""
        for known in SCORE_KINDS:
            if kind.lower() == known:
                return replace(self, score_kind=known)
        raise BindError(unknown("score", kind, SCORE_KINDS))

    def top(self, k: int) -> list[Heatmap]:
        """The maps of the k classes (at most all) with the highest logits on the unmodified image, best first."""
        if k < 1:
            raise BindError(f"TOP takes a whole number of at least 1, not {k}")
        best = self.base_logits.topk(min(k, len(self.base_logits))).indices.tolist()
        return [replace(self, target=target) for target in best]

    def plot(self, ax: Axes | None = None) -> Figure:
        """A Matplotlib figure: the image beside the map laid over it; or the latter alone, drawn into `ax`."""
        from krypton.results import pictures

        if ax is None:
            return pictures.overlay_figure(self)
        pictures.draw_overlay(self, ax)
        figure = ax.get_figure(root=True)
        if figure is None:
            raise BindError("plot(ax) needs axes that belong to a figure")
        return figure

    def save(self, path: str | os.PathLike[str], overwrite: bool = True) -> Path:
        """Write a picture (.png, .svg) or the data (.npz, .parquet) and return the path; see `files.write`."""
        from krypton.results import files

        return files.write(self, path, overwrite=overwrite)

    def to_rows(self) -> list[dict[str, Any]]:
        """A dictionary per known position; the columns are those of `tables.columns`."""
        from krypton.results import tables

        return tables.rows(self)

    def to_arrow(self) -> Any:
        """The same as a pyarrow.Table; needs pyarrow, which Krypton does not install."""
        from krypton.results import tables

        return tables.arrow(self)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.known.shape))
        what = f"{shape} masks" if self.masks is not None else f"{shape} positions"
        text = f"{what}, {self.label!r}, {self.score_kind} {self.base_score:.4g}"
        if not self.complete:
            text += f", {int(self.known.sum()):,} of {self.known.numel():,} known"
        if self.known.any():
            most = float(self.drop().ravel()[self.most_sensitive_index])
            text += f", drops by up to {most:.4g} at ({', '.join(map(str, self.most_sensitive))})"
        if self.quality is not None:
            text += f", {self.quality}"
        for warning in self.info.get("warnings", ()):
            text += f"; {warning}"
        return f"Heatmap({text})"

    def _repr_png_(self) -> bytes:
        from krypton.results import pictures

        return pictures.png(self)

    @cached_property
    def _scores(self) -> Tensor:
        return score(self.logits, self.target, self.score_kind, self.activation)


def _mean_over_boxes(values: NDArray[np.float32], boxes: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.float32]:
    """The mean per pixel over rectangles: four corners each in a table of differences, integrated along both axes."""
    height, width = size
    top, left = boxes[:, 0], boxes[:, 1]
    bottom, right = top + boxes[:, 2], left + boxes[:, 3]
    total = np.zeros((height + 1, width + 1))
    count = np.zeros((height + 1, width + 1), dtype=np.int64)
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        np.add.at(total, (rows, columns), sign * values.astype(np.float64))
        np.add.at(count, (rows, columns), sign)
    for axis in (0, 1):
        total, count = total.cumsum(axis), count.cumsum(axis)
    return _mean(total[:height, :width], count[:height, :width])


def _mean_over_masks(values: NDArray[np.float32], masks: Tensor) -> NDArray[np.float32]:
    height, width = masks.shape[1:]
    total = torch.zeros(height * width, dtype=torch.float64)
    # A few at a time: the product wants the masks as floats, eight times their size.
    for start in range(0, len(values), 64):
        some = slice(start, start + 64)
        total += torch.from_numpy(values[some]).double() @ masks[some].flatten(1).double()
    return _mean(total.view(height, width).numpy(), masks.sum(0).numpy())


def _mean(total: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.float32]:
    mean = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean.astype(np.float32)
