"""Tunings: what TUNE MODEL found for a model, and the store of them in the catalog.

A tuning belongs to everything that the quality of its settings depends on: the model by content (weights, graph, preprocessing,
activation), patch, stride and fill. It is never used for anything else, whatever the names.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krypton.fills import Fill, FillSpec
from krypton.ir.plan import Approximation
from krypton.models import Model
from krypton.planner.tuning import MISS, Curve, Sampled, choose, curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from krypton.catalog import Catalog

Pair = tuple[int, int]

_OF_THE_IMAGE = ("mean", "blur", "noise")


@dataclass(frozen=True)
class Subject:
    """What a tuning is of. `model` is a hash of the model's content, `fill` one of the fill, or a name."""

    model: str
    patch: Pair
    stride: Pair
    fill: str

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


def subject(model: Model, key: str, patch: Pair, stride: Pair, spec: FillSpec, fill: Fill) -> Subject:
    """The subject of a query; `key` is the fingerprint of the captured model (`graphs.Captured`)."""
    preprocessing = model.preprocessing
    content = f"{key} {preprocessing.shape} {preprocessing.mean} {preprocessing.std} {model.activation}"
    named = isinstance(spec, str) and spec.lower() in _OF_THE_IMAGE
    return Subject(
        hashlib.sha256(content.encode()).hexdigest(), patch, stride, str(spec).lower() if named else fill.content_hash
    )


@dataclass(frozen=True)
class Tuning:
    """What TUNE MODEL found. Prints as text.

    - model, patch, stride, fill: as in the statement; `device` is where times were taken
    - target: the SSIM of FOR SSIM; other goals are answered from the same samples, see `for_ssim`
    - sampled: for every setting that was tried the SSIM and the relative time of each image, images in one order
    - images: their names; `flat` images had nothing to see (exact range below 0.02), `unreadable` ones could not be read
    - created: when it was made
    """

    subject: Subject
    model: str
    patch: Pair
    stride: Pair
    fill: str
    device: str
    target: float
    sampled: tuple[Sampled, ...] = field(repr=False)
    images: tuple[str, ...] = field(repr=False)
    flat: int = 0
    unreadable: int = 0
    created: datetime = field(default_factory=lambda: datetime.now().replace(microsecond=0))

    @property
    def curve(self) -> Curve | None:
        """Mean SSIM over tau."""
        return curve(self.sampled, "tau")

    @property
    def keep_curve(self) -> Curve | None:
        """Mean SSIM over keep; None where the map is too small for the energy cut."""
        return curve(self.sampled, "keep")

    @property
    def tau(self) -> float | None:
        """Where the curve crosses the target; None where it does not."""
        return None if self.curve is None else self.curve.reach(self.target)

    @property
    def keep(self) -> float | None:
        """Where the curve of keep crosses the target; None where it does not."""
        return None if self.keep_curve is None else self.keep_curve.reach(self.target)

    @property
    def setting(self) -> Sampled:
        """The cheapest setting that reaches the target, with the SSIM of each image and its time over the exact map's."""
        return self.for_ssim(self.target)

    def for_ssim(self, target: float) -> Sampled:
        """The cheapest setting for another target."""
        return choose(self.sampled, target)

    @property
    def deviations(self) -> tuple[float, ...]:
        """The SSIM of each image with the setting, less the target."""
        return tuple(ssim - self.target for ssim in self.setting.ssim)

    def plot(self) -> Figure:
        """A Matplotlib figure: the curves with the images' points, and the deviations from the target."""
        from krypton.results import tuning_pictures

        return tuning_pictures.figure(self.sampled, self.target, self.deviations)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure (.png, .svg, .pdf), and return the path; raises ExecutionError."""
        from krypton.results import tuning_pictures

        return tuning_pictures.save(self.plot(), path)

    def __str__(self) -> str:
        found = self.setting
        left_out = [f"{count} {what}" for count, what in ((self.flat, "flat"), (self.unreadable, "unreadable")) if count]
        met = sum(deviation >= -MISS for deviation in self.deviations)
        images = f"{len(self.images)} images" + (f" ({', '.join(left_out)} ones left out)" if left_out else "")
        lines = [
            f"tuned model {self.model}, patch {by(self.patch)} stride {by(self.stride)} fill {self.fill}, "
            f"SSIM {self.target:g}, over {images}",
            f"setting {described(found.setting)}: SSIM {sum(found.ssim) / len(found.ssim):.3f} on average, met or missed by at "
            f"most {MISS} on {met} of {len(self.images)} images, {1 / found.typical_cost:.1f}× over exact",
        ]
        for name, fitted in (("tau", self.curve), ("keep", self.keep_curve)):
            if fitted is None:
                continue
            points = ", ".join(f"{value:g}: {mean:.3f}" for value, mean in zip(fitted.values, fitted.means, strict=True))
            value = fitted.reach(self.target)
            where = "does not reach the target" if value is None else f"reaches the target at {value:.4g}"
            lines.append(f"{name} {where} (mean SSIM at {points})")
        return "\n".join(lines)


def described(setting: Approximation) -> str:
    """A setting as WITH has it."""
    return ", ".join(f"{name} {value:.4g}" for name, value in setting.options().items()) or "exact"


def by(size: Pair) -> str:
    """A size as statements write it."""
    return f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"


class Tunings:
    """The tunings of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def find(self, wanted: Subject) -> Tuning | None:
        """The tuning of just that."""
        return next((found for found in map(_from_json, self._catalog.tunings(wanted.key)) if found is not None), None)

    def all(self) -> list[Tuning]:
        """All of them, the latest last."""
        return [found for found in map(_from_json, self._catalog.tunings()) if found is not None]

    def save(self, tuning: Tuning) -> None:
        """Keep a tuning, in the place of an earlier one of the same."""
        self._catalog.put_tuning(tuning.subject.key, tuning.model, json.dumps(_to_json(tuning)))


def _to_json(tuning: Tuning) -> dict[str, Any]:
    values = {entry.name: getattr(tuning, entry.name) for entry in fields(tuning)}
    sampled = [[entry.setting.options(), entry.ssim, entry.cost] for entry in tuning.sampled]
    return values | {"subject": asdict(tuning.subject), "sampled": sampled, "created": tuning.created.isoformat()}


def _from_json(text: str) -> Tuning | None:
    """None for what another version wrote: as if it were not there."""
    try:
        data: Mapping[str, Any] = json.loads(text)
        about = data["subject"] | {name: _pair(data["subject"][name]) for name in ("patch", "stride")}
        return Tuning(**{
            **data,
            "subject": Subject(**about),
            "patch": _pair(data["patch"]),
            "stride": _pair(data["stride"]),
            "sampled": tuple(Sampled(Approximation(**setting), tuple(s), tuple(c)) for setting, s, c in data["sampled"]),
            "images": tuple(data["images"]),
            "created": datetime.fromisoformat(data["created"]),
        })  # fmt: skip
    except (ValueError, LookupError, TypeError):
        return None


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return int(first), int(second)
