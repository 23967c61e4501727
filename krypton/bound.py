"""Bound queries: everything about a query checked and resolved, nothing run yet.

`build_query` makes one from plain values; the binder gives it what a statement says, `explain_occlusion` its arguments.
Its errors carry the clause they are about (`sql.places`).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from krypton.approximation import APPROXIMATE_OPTIONS, check_approximation, number_option, tunable, whole_option
from krypton.errors import BindError, unknown
from krypton.executor.precision import Scores
from krypton.fills import Fill, FillSpec, make_fill
from krypton.images import ImageSource, LoadedImage, load_image
from krypton.ir.occlusions import Grid, Masks, Occlusions
from krypton.ir.plan import Approximation
from krypton.masks import MaskSource, load_masks, superpixels
from krypton.models import Model
from krypton.planner.stages import plan_stages
from krypton.planner.trials import device_of
from krypton.results.classes import find_class
from krypton.results.scores import SCORE_KINDS, ScoreKind, score
from krypton.settings import Settings
from krypton.sql.ast import ClassAll, ClassIndex, ClassPredicted, ClassTop, IntoFile, IntoTable, Superpixels
from krypton.sql.places import clause

Mode = Literal["naive", "exact", "approximate"]
Target = ClassPredicted | ClassIndex | ClassTop | ClassAll

PATCH, STRIDE, FILL = (16, 16), (4, 4), "gray"

OPTIONS = ("batch", "seed", "tolerance")


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image of a query, loaded, with the fill and the occlusions made for it."""

    image: LoadedImage
    fill: Fill
    occlusions: Occlusions


@dataclass(frozen=True, eq=False)
class BoundQuery:
    """A query that can be planned and run.

    `images` are loaded, or paths of existing files that are loaded when their turn comes. `several`: the answer is a list
    of maps, whatever its length. `settings` are those of the session when the query was made, WITH included.
    `approximation`: what MODE APPROXIMATE may leave out, None in other modes; `tunable`: what is left out is not
    written, so that a tuning of the model or a deadline may choose it.
    """

    model: Model
    images: tuple[LoadedImage | str, ...]
    occlusions: Occlusions | Superpixels
    fill: FillSpec
    target: Target
    score: ScoreKind
    mode: Mode
    device: str
    settings: Settings
    seed: int
    approximation: Approximation | None
    tunable: bool
    into: IntoFile | IntoTable | None
    several: bool
    statement: str

    def prepare(self, index: int) -> Prepared:
        """Load an image and make what depends on it; raises ImageError and BindError."""
        with clause("OF"):
            image = self._image(self.images[index])
        with clause("FILL"):
            most = self.settings["max_image_pixels"]
            fill = make_fill(self.fill, image, self.model.preprocessing, seed=self.seed, max_pixels=most)
        with clause("MASKS"):
            occlusions = self.occlusions
            if isinstance(occlusions, Superpixels):
                occlusions = Masks(superpixels(image, occlusions.count))
        return Prepared(image, fill, occlusions)

    def targets(self, base_logits: torch.Tensor) -> list[int]:
        """The classes that are asked for, the first one first, from the logits (K,) of the unmodified image."""
        match self.target:
            case ClassPredicted():
                return [int(base_logits.argmax())]
            case ClassIndex(index):
                return [index]
            case ClassTop(count):
                return [int(index) for index in base_logits.topk(min(count, len(base_logits))).indices]
            case ClassAll():
                return list(range(len(base_logits)))

    def scores(self, base_logits: torch.Tensor) -> Scores:
        """The function from logits (n, K) to the scores (n, targets) that are asked for."""
        targets, kind, activation = self.targets(base_logits), self.score, self.model.activation
        return lambda logits: torch.stack([score(logits, target, kind, activation) for target in targets], -1)

    def _image(self, image: LoadedImage | str) -> LoadedImage:
        if isinstance(image, LoadedImage):
            return image
        return load_image(image, self.model.preprocessing, max_pixels=self.settings["max_image_pixels"])


@dataclass(frozen=True, kw_only=True)
class Clauses:
    """What a query says besides image and model, as plain values; None: not said. See `explain_occlusion` for the forms."""

    patch: Any = None
    stride: Any = None
    masks: MaskSource | Superpixels | None = None
    region: Any = None
    fill: FillSpec | None = None
    target: int | str | Target | None = None
    score: str | None = None
    mode: str | None = None
    within: float | None = None
    device: str | None = None
    options: Mapping[str, Any] | None = None
    into: IntoFile | IntoTable | None = None


def build_query(
    model: Model, images: Sequence[ImageSource], clauses: Clauses, settings: Settings, *, rows: bool, statement: str
) -> BoundQuery:
    """Check everything and put it together; raises BindError or ImageError that carries its clause.

    `rows`: the images are rows of a table, so the answer is a list; they are paths, of which only the first is read now.
    """
    mode = _check_mode(clauses)
    with clause("WITH"):
        written = clauses.options or {}
        seed, options = _check_options(written, mode)
        approximation = check_approximation(written, seed, clauses.within) if mode == "approximate" else None
    own = Settings(dict(settings.items()))
    for name, value in options.items():
        own.set(name, value)
    if approximation is not None and approximation.ssim is not None and own["tolerance"] > 0:
        with clause("WITH"):
            raise BindError("ssim and tolerance both say how near the map is to be: leave out one of them (tolerance => 0)")
    with clause("DEVICE"):
        device = check_device(clauses.device or _default_device(own, model))
    occlusions = _check_occlusions(clauses, model)
    with clause("FOR CLASS"):
        target = _check_target(clauses.target, model)
    with clause("SCORE"):
        score = _check_score(clauses.score)
    with clause("OF"):
        loaded = tuple(_early(image, rows, model, own) for image in images)
    query = BoundQuery(
        model,
        loaded,
        occlusions,
        FILL if clauses.fill is None else clauses.fill,
        target,
        score,
        mode,
        device,
        own,
        seed,
        approximation,
        approximation is not None and tunable(written, clauses.within),
        clauses.into,
        rows or isinstance(target, (ClassTop, ClassAll)),
        statement,
    )
    prepared = query.prepare(0)
    by_default = query.tunable and isinstance(prepared.occlusions, Grid)  # as far as the grid allows it
    if approximation is not None and not by_default:
        with clause("WITH" if written else "MODE"):
            plan_stages(prepared.occlusions, approximation, exact=True)
    return query


def check_device(device: str) -> str:
    """A device that is there; raises BindError."""
    found = [available[0] for available in devices()]
    name = device.lower() if isinstance(device, str) else str(device)
    if name == "cuda" and "cuda:0" in found:
        return "cuda:0"
    if name not in found:
        missing = " There is no CUDA device on this computer." if name.startswith("cuda") and len(found) == 1 else ""
        raise BindError(unknown("device", str(device), found) + missing)
    return name


def devices() -> list[tuple[str, str]]:
    """The devices that queries can run on: (name, what it is)."""
    cpu = [("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of PyTorch")]
    if not torch.cuda.is_available():
        return cpu
    return cpu + [(f"cuda:{index}", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]


def _default_device(settings: Settings, model: Model) -> str:
    """The setting; where that was left as it is, a model that lives on another device is asked there."""
    wanted: str = settings["device"]
    return wanted if wanted != "cpu" else str(device_of(model.module))


def _check_mode(clauses: Clauses) -> Mode:
    modes: tuple[Mode, ...] = get_args(Mode)
    written = "exact" if clauses.mode is None else str(clauses.mode).lower()
    found = next((mode for mode in modes if mode == written), None)
    if found is None:
        with clause("MODE"):
            raise BindError(unknown("mode", written, modes))
    if clauses.within is None:
        return found
    with clause("WITHIN"):
        seconds = clauses.within
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
            raise BindError(f"WITHIN takes a number of seconds above 0, not {seconds!r}")
        if clauses.mode is not None and found != "approximate":
            raise BindError(
                f"WITHIN and MODE {found.upper()} contradict each other: with a deadline the map is approximate, unless there "
                "is time for all positions. Leave one out"
            )
    return "approximate"


def _check_options(options: Mapping[str, Any], mode: Mode) -> tuple[int, dict[str, Any]]:
    """The seed, and the options that are settings of this query."""
    own: dict[str, Any] = {}
    seed = 0
    for written, value in options.items():
        name = written.lower()
        if name in APPROXIMATE_OPTIONS:
            if mode != "approximate":
                raise BindError(
                    f"option {name} needs MODE APPROXIMATE; queries are answered with MODE EXACT unless they say so"
                )
        elif name == "tolerance":
            own["tolerance"] = number_option(name, value, 0)
        elif name == "batch":
            own["batch"] = whole_option(name, value, 1)
        elif name == "seed":
            seed = whole_option(name, value, 0)
        else:
            raise BindError(unknown("option", written, (*OPTIONS, *(APPROXIMATE_OPTIONS if mode == "approximate" else ()))))
    return seed, own


def _check_occlusions(clauses: Clauses, model: Model) -> Occlusions | Superpixels:
    height, width = model.preprocessing.height, model.preprocessing.width
    if clauses.masks is not None:
        for words, value in (("PATCH", clauses.patch), ("STRIDE", clauses.stride), ("IN REGION", clauses.region)):
            if value is not None:
                with clause(words):
                    raise BindError(f"{words} and MASKS contradict each other: masks say what is hidden. Leave one out")
        with clause("MASKS"):
            if isinstance(clauses.masks, Superpixels):
                return clauses.masks
            return Masks(load_masks(clauses.masks, height, width))
    with clause("PATCH"):
        patch = _size("patch", clauses.patch, PATCH)
        Grid((height, width), patch, (1, 1))
    with clause("STRIDE"):
        stride = _size("stride", clauses.stride, STRIDE)
        Grid((height, width), patch, stride)
    with clause("IN REGION"):
        return Grid((height, width), patch, stride, _region(clauses.region))


def _size(name: str, value: object, default: tuple[int, int]) -> tuple[int, int]:
    if value is None:
        return default
    sizes = value if isinstance(value, (tuple, list)) else (value, value)
    try:
        rows, columns = (operator.index(size) for size in sizes)
    except (TypeError, ValueError):
        raise BindError(f"{name} is a whole number, or two for rows and columns, not {value!r}") from None
    return rows, columns


def _region(value: Any) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    try:
        top, left, height, width = (operator.index(number) for number in value)
    except (TypeError, ValueError):
        raise BindError(f"a region is four whole numbers, (top, left, height, width), not {value!r}") from None
    return top, left, height, width


def _check_target(target: object, model: Model) -> Target:
    match target:
        case None:
            return ClassPredicted()
        case ClassTop(count):
            if not 1 <= count <= model.outputs:
                raise BindError(f"TOP takes a number from 1 to {model.outputs}, the classes of the model, not {count}")
            return target
        case ClassPredicted() | ClassAll():
            return target
        case ClassIndex(index):
            return ClassIndex(find_class(index, model.labels, model.outputs))
        case _:
            return ClassIndex(find_class(target, model.labels, model.outputs))  # type: ignore[arg-type]


def _check_score(score: str | None) -> ScoreKind:
    if score is None:
        return "probability"
    for kind in SCORE_KINDS:
        if isinstance(score, str) and score.lower() == kind:
            return kind
    raise BindError(unknown("score", str(score), SCORE_KINDS))


def _early(image: ImageSource, row: bool, model: Model, settings: Settings) -> LoadedImage | str:
    """Loaded now, since what is handed over may change; rows, which may be many, must at least be files that exist."""
    if not row:
        return load_image(image, model.preprocessing, max_pixels=settings["max_image_pixels"])
    path = str(image)
    if not os.path.isfile(os.path.expanduser(path)):
        load_image(path, model.preprocessing, max_pixels=settings["max_image_pixels"])  # says what is wrong
    return path
