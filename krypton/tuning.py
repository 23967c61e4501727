"""TUNE MODEL: every setting on a sample of the user's images, each judged by the exact map of the same image.

The arithmetic is `planner.tuning`'s, the store `tunings`'s. Nothing is kept unless all images are done.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from krypton.bound import BoundQuery, Clauses, build_query
from krypton.errors import BindError, ImageError
from krypton.executor.stages import evenly_drawn
from krypton.graphs import GraphCache
from krypton.images import LoadedImage, load_image, nearest_file
from krypton.ir.occlusions import Grid
from krypton.ir.plan import Approximation
from krypton.models import Model
from krypton.planner.tuning import Sampled, candidates
from krypton.profiles import Profiles
from krypton.progress import Report
from krypton.query import Catalog, Query
from krypton.results import Heatmap, compare
from krypton.results.quality import MIN_EXACT_RANGE
from krypton.settings import Settings
from krypton.sql.places import clause
from krypton.tunings import Tuning, Tunings, subject

SAMPLE = 30
"""Images, unless SAMPLE says otherwise."""

LEAST = 3
"""Images that a curve may be put through."""

_CUTS = ("projective_threshold", "energy_cut")


@dataclass(frozen=True)
class Workplace:
    """What of a session queries need."""

    graphs: GraphCache
    catalog: Catalog
    profiles: Profiles
    tunings: Tunings
    settings: Settings


def tune(
    model: Model,
    paths: Sequence[str],
    clauses: Clauses,
    target: float,
    most: int | None,
    place: Workplace,
    report: Report,
    statement: str,
) -> Tuning:
    """Try all settings on at most so many of the images, and keep what was found; `report` hears (runs done, runs in all).

    `clauses` has patch, stride, fill and device. Raises BindError for what makes no sense, ImageError when fewer than three of
    the images can be read or are not flat; and KeyboardInterrupt with a text that says what was done.
    """
    with clause("FOR SSIM"):
        if not 0 < target <= 1:
            raise BindError(f"SSIM is above 0 and at most 1, the same map: {target:g} cannot be reached")
    with clause("SAMPLE"):
        if most is not None and most < LEAST:
            raise BindError(f"SAMPLE takes a whole number of at least {LEAST}, not {most}")
    off = [rule for rule in _CUTS if rule in place.settings["disabled_rules"]]
    if off:
        raise BindError(f"rule {off[0]} is disabled: a tuning would not see what it does; RESET krypton.disabled_rules")
    with clause("OVER"):
        images, names, unreadable = _readable(paths, most or SAMPLE, model, place.settings)
    bound = build_query(
        model, names[:1], replace(clauses, options={"tolerance": 0}), place.settings, rows=True, statement=statement
    )
    bound = replace(bound, images=tuple(images))
    grid = bound.occlusions
    assert isinstance(grid, Grid)
    with clause("STRIDE" if clauses.stride is not None else "PATCH"):
        if min(grid.shape) < 3:
            raise BindError(f"SSIM compares maps of at least 3×3 positions; this grid has {grid.shape[0]}×{grid.shape[1]}")
    found, seen = _sample(bound, candidates(grid), place, report)
    with clause("OVER"):
        if len(seen) < LEAST:
            raise ImageError(
                f"{len(images) - len(seen)} of {len(images)} images have flat maps, where no patch changes the score by "
                f"{MIN_EXACT_RANGE}: SSIM says nothing of them, and {LEAST} others are needed"
            )
    prepared = bound.prepare(0)
    captured = place.graphs.captured(model, keep=place.settings["cache_graphs"])
    tuning = Tuning(
        subject=subject(model, captured.key, grid.patch, grid.stride, bound.fill, prepared.fill),
        model=model.name,
        patch=grid.patch,
        stride=grid.stride,
        fill=prepared.fill.description,
        device=bound.device,
        target=float(target),
        sampled=tuple(found),
        images=tuple(names[index] for index in seen),
        flat=len(images) - len(seen),
        unreadable=unreadable,
    )
    place.tunings.save(tuning)
    return tuning


def image_paths(where: str) -> list[str]:
    """The images of a folder (by their suffixes), or whatever files a glob or path names, in order; BindError for none."""
    path = Path(where).expanduser()
    if path.is_dir():
        Image.init()
        suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        found = [entry for entry in path.iterdir() if entry.suffix.lower() in suffixes]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # absolute patterns, too
    files = sorted(str(entry) for entry in found if entry.is_file())
    if not files:
        what = f"the folder '{where}' has no images" if path.is_dir() else f"no file fits '{where}'"
        hint = "" if path.is_dir() or glob.has_magic(where) else nearest_file(path)
        raise BindError(f"{what}: name a folder of images, or a pattern such as 'scans/*.png'.{hint}")
    return files


def _readable(paths: Sequence[str], most: int, model: Model, settings: Settings) -> tuple[list[LoadedImage], list[str], int]:
    """At most so many of the images, one of each of equal parts of the list; their names; how many could not be read."""
    drawn = [paths[index] for index in evenly_drawn(range(len(paths)), most, seed=0)]
    images, problem = [], ""
    for path in drawn:
        try:
            images.append(load_image(path, model.preprocessing, max_pixels=settings["max_image_pixels"]))
        except ImageError as error:
            problem = problem or f". The first of {len(drawn)} that cannot be read: {error}"
    if len(images) < LEAST:
        raise ImageError(f"tuning needs at least {LEAST} images that can be read, and there are {len(images)}{problem}")
    return images, [image.name for image in images], len(drawn) - len(images)


def _sample(
    bound: BoundQuery, settings: Sequence[Approximation], place: Workplace, report: Report
) -> tuple[list[Sampled], list[int]]:
    """What every setting gave on the images that are not flat, and which those are."""

    def query(**changes: object) -> Query:
        asked = replace(bound, tunable=False, **changes)  # type: ignore[arg-type]
        return Query(asked, place.graphs, place.catalog, place.profiles, place.tunings)

    exact = query()
    trials = [
        None if setting.tau == 1 else query(mode="approximate", approximation=replace(setting, quality_share=0.0))
        for setting in settings
    ]
    ssim: list[list[float]] = [[] for _ in settings]
    cost: list[list[float]] = [[] for _ in settings]
    seen: list[int] = []
    total, done = len(bound.images) * (len(settings) + 1), 0
    try:
        for index in range(len(bound.images)):
            reference = exact.answer(index)
            if index == 0:
                reference = exact.answer(index)  # once more: kernels were made ready, which is nobody's time
            done += 1
            report(done, total)
            if np.ptp(reference.drop()) < MIN_EXACT_RANGE:
                done += len(settings)
                report(done, total)
                continue
            seen.append(index)
            for number, trial in enumerate(trials):
                similarity, relative = _judged(trial, index, reference)
                ssim[number].append(similarity)
                cost[number].append(relative)
                done += 1
                report(done, total)
    except KeyboardInterrupt:
        text = f"interrupted: {index} of {len(bound.images)} images were done; no tuning is kept"
        raise KeyboardInterrupt(text) from None
    return [Sampled(*entry) for entry in zip(settings, map(tuple, ssim), map(tuple, cost), strict=True)], seen


def _judged(trial: Query | None, index: int, reference: Heatmap) -> tuple[float, float]:
    """SSIM and relative time of a setting on an image; None is the exact map itself."""
    if trial is None:
        return 1.0, 1.0
    heatmap = trial.answer(index)
    similarity = compare(heatmap, reference).ssim
    assert similarity is not None
    return similarity, heatmap.info["seconds"] / reference.info["seconds"]
