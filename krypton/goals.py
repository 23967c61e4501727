"""Goals: what a query leaves out to be as good as `WITH (ssim => x)` wants it, and what judges that.

The model's tuning says it where there is one for just this query, else the query finds out on the image itself. Between the
query, which asks, and `tunings`; the run itself is the executor's (`executor.goals`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from krypton.bound import BoundQuery, Prepared
from krypton.executor.goals import Promise
from krypton.ir.occlusions import Grid, Occlusions
from krypton.ir.plan import Approximation
from krypton.planner.stages import reaches
from krypton.results import Heatmap, HeldOut
from krypton.results.quality import measured
from krypton.sql import ast
from krypton.sql.printer import to_sql
from krypton.tunings import Subject, Tuning, Tunings, by, described, subject


def settle(bound: BoundQuery, prepared: Prepared, key: str, tunings: Tunings) -> tuple[Approximation | None, list[str]]:
    """What a query may leave out, and notes on where that is from; `key` is the captured model's fingerprint."""
    asked = bound.approximation
    if asked is not None and asked.ssim == 1:
        return replace(asked, ssim=None), ["ssim => 1 asks for the exact map"]
    if asked is None or asked.within is not None or not bound.tunable:
        return asked, []
    said, because = _tuned(bound, prepared, key, tunings)
    if said is None:
        if asked.ssim is None:
            notes = [f"the defaults of MODE APPROXIMATE are used: {because}"] if because else []
            return _as_far_as_it_goes(asked, prepared.occlusions, notes)
        how = f"SSIM {asked.ssim:g} is to be reached by measuring on the image itself"
        return asked, [f"{how}: {because or _advice(bound, asked.ssim)}"]
    goal = said.target if asked.ssim is None else asked.ssim
    setting = said.for_ssim(goal).setting
    note = f"{described(setting)}, for SSIM {goal:g}, by tuning of {said.created:%Y-%m-%d}, {len(said.images)} images"
    return replace(setting, quality_share=asked.quality_share, seed=asked.seed), [note]


def _as_far_as_it_goes(asked: Approximation, grid: Occlusions, notes: list[str]) -> tuple[Approximation, list[str]]:
    """What a query leaves out by default, which is nothing on grids that are too small for a drill-down."""
    share, speedup = asked.drilldown, asked.speedup
    if share is None or speedup is None or not isinstance(grid, Grid) or reaches(grid, share, speedup):
        return asked, notes
    small = "all positions are computed: a grid of {}×{} is too small for the drill-down of MODE APPROXIMATE".format(
        *grid.shape
    )
    return replace(asked, drilldown=None, speedup=None), [small]


def promise(bound: BoundQuery, prepared: Prepared) -> Callable[[Tensor], Promise]:
    """What judges maps of one image, by the first class and the score that are asked for."""

    def of(base: Tensor) -> Promise:
        def judge(logits: Tensor, exact: Tensor, places: Tensor, thought: Tensor) -> float | None:
            shape = prepared.occlusions.shape
            heatmap = Heatmap(
                logits=logits.view(*shape, -1),
                base_logits=base,
                positions=prepared.occlusions.rectangles(),
                image=prepared.image,
                image_size=(bound.model.preprocessing.height, bound.model.preprocessing.width),
                target=bound.targets(base)[0],
                activation=bound.model.activation,
                known=torch.ones(shape, dtype=torch.bool),
                exact=exact.view(shape),
                held_out=HeldOut(places, thought),
                score_kind=bound.score,
            )
            return measured(heatmap).ssim

        return judge

    return of


def _tuned(bound: BoundQuery, prepared: Prepared, key: str, tunings: Tunings) -> tuple[Tuning | None, str]:
    """The tuning of just this query, or why there is none where one might be expected."""
    grid, goal = prepared.occlusions, None if bound.approximation is None else bound.approximation.ssim
    if not isinstance(grid, Grid):
        return None, ""
    wanted = subject(bound.model, key, grid.patch, grid.stride, bound.fill, prepared.fill)
    found = tunings.find(wanted)
    if found is None:
        others = [tuning for tuning in tunings.all() if tuning.model.lower() == bound.model.name.lower()]
        return None, f"{_difference(others[-1], wanted)}; {_advice(bound, goal or others[-1].target)}" if others else ""
    unlike = (
        (bound.score != "probability", "a tuning is one of PROBABILITY, not of other scores"),
        (not isinstance(bound.target, ast.ClassPredicted | ast.ClassTop), "a tuning is one of the predicted class"),
        (grid.region is not None, "a tuning is one of whole maps, not of a region"),
    )
    reasons = [reason for differs, reason in unlike if differs]
    return (None, reasons[0]) if reasons else (found, "")


def _difference(tuning: Tuning, wanted: Subject) -> str:
    """In what a tuning of a model of the same name is another one."""
    mine = tuning.subject
    text = f"the tuning of {tuning.created:%Y-%m-%d} for model {tuning.model} is one of "
    if mine.model != wanted.model:
        return f"{text}another model: weights, graph or preprocessing have changed"
    for words, ours, others in (("PATCH", mine.patch, wanted.patch), ("STRIDE", mine.stride, wanted.stride)):
        if ours != others:
            return f"{text}{words} {by(ours)}, not {by(others)}"
    return f"{text}another fill, {tuning.fill}"


def _advice(bound: BoundQuery, goal: float) -> str:
    """The statement that makes a tuning for the query."""
    grid = bound.occlusions
    assert isinstance(grid, Grid)
    match bound.fill:
        case str(name) if name.lower() in ("black", "gray", "white", "mean", "blur", "noise"):
            fill: ast.Fill = ast.NamedFill(name.lower())  # type: ignore[arg-type]
        case (red, green, blue):
            fill = ast.RgbFill(red, green, blue)
        case str(path):
            fill = ast.PathRef(path)
        case _:
            fill = ast.Param("fill")
    statement = ast.TuneModel(
        bound.model.name, ast.PathRef("<folder of images>"), goal, ast.Size(*grid.patch), ast.Size(*grid.stride), fill
    )
    return f"for other images {to_sql(statement)} finds it out once"
