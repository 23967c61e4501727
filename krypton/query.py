"""Lazy queries: planned, explained and run when they are asked to.

Between the session, which binds them, and planner and executor, which know nothing of names, files or progress.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from krypton.answers import Answer, note_of_reuse, snapshots
from krypton.bound import BoundQuery, Prepared
from krypton.destinations import Destination, Tables
from krypton.errors import BindError, CaptureError, KryptonError, unknown
from krypton.estimates import Estimate, architecture, duration, estimate
from krypton.executor import Clock, execute, make_ready
from krypton.goals import promise, settle
from krypton.graphs import Captured, GraphCache
from krypton.ir.occlusions import Grid, Occlusions
from krypton.ir.plan import Approximation, QueryPlan
from krypton.ir.weights import Reference
from krypton.kernels import native
from krypton.known import KnownResults, ResultStore
from krypton.planner.correction import Finished
from krypton.planner.cost import BYTES
from krypton.planner.deadline import MOST_MEASURING, cheaper
from krypton.planner.explain import FORMATS, explain
from krypton.planner.observation import observed
from krypton.planner.optimizer import as_cut, plan_query
from krypton.planner.patience import worth_waiting
from krypton.planner.precision import without_approximations
from krypton.planner.prediction import Prediction, predict, predict_naive
from krypton.planner.profile import DeviceProfile
from krypton.planner.trials import device_of
from krypton.profiles import Profiles
from krypton.progress import Report, reporting
from krypton.results import Heatmap
from krypton.settings import Settings
from krypton.tunings import Tunings

_STILL_COMPILING = "without Krypton's own kernels, which compile once: this query is done before they would be"
_ALONE = "images go through the model one by one: it mixes the examples of a batch, or takes no batches"


class Catalog(Tables, ResultStore, Protocol):
    """What is asked of a catalog."""


class Query:
    """One EXPLAIN OCCLUSION, checked, not run yet.

    `partial` and `completed` are there for what an interrupted `run` leaves: the map it was working on, and those that
    it had finished before (of several images).
    """

    def __init__(self, bound: BoundQuery, graphs: GraphCache, catalog: Catalog, profiles: Profiles, tunings: Tunings) -> None:
        self.bound = bound
        self.partial: Heatmap | None = None
        self.completed: list[Heatmap] = []
        self._graphs = graphs
        self._catalog = catalog
        self._profiles = profiles
        self._allowance = 0.0
        self._tunings = tunings
        self._first: Prepared | None = None
        self._prediction: tuple[QueryPlan, DeviceProfile, bool, Prediction] | None = None
        self._planned: tuple[Captured, Occlusions, QueryPlan] | None = None

    def plan(self) -> QueryPlan:
        """How the query will be answered (for its first image, if there are several); captures the model if need be."""
        return self._plan_for(self._prepared(0))[1]

    def explain(self, *, format: str = "text", costs: bool = True, analyze: bool = False, verbose: bool = False) -> str:
        """The plan as text, JSON, DOT or Mermaid.

        `costs` shows predictions; `analyze` runs the query (on its first image, writing nothing) and shows measured times
        beside them; `verbose` shows kernels and rules. Raises BindError for an unknown format.
        """
        if format.lower() not in FORMATS:
            raise BindError(unknown("format", format, FORMATS))
        shown = {"format": format.lower(), "costs": costs, "verbose": verbose}
        if not analyze:
            return explain(self._with_known(), **shown)  # type: ignore[arg-type]
        self._allowance = self._allowed()
        with closing(self._steps(0, reuse=False)) as steps:  # all of it is to be seen
            *_, answer = steps
        plan, cut = self.plan(), answer.execution.settled
        if cut is not None and plan.tensor is not None and plan.tensor.keep < 1:
            plan = as_cut(plan, cut, self.bound.settings, self._profiles.of(plan.device))
        plan = replace(plan, notes=(*plan.notes, *self._outcome(answer)))
        # times are shown per position, and a deadline may have left some out
        more = plan.computed / max(answer.computed, 1) if self._allowed() else 1.0
        actual = {node: milliseconds * more for node, milliseconds in answer.execution.actual.items()}
        return explain(plan, actual=actual, seconds=answer.seconds, **shown)  # type: ignore[arg-type]

    def run(self, progress: bool | Report = False) -> Heatmap | list[Heatmap]:
        """The heat map; or a list of them when the query asks for several: TOP k, ALL, OF (SELECT ...), image by image.

        Carries out INTO. `progress` shows a bar on standard error, or is called with (occlusions done, in all). Raises
        ExecutionError; and KeyboardInterrupt with a text that says what was done, which `partial` and `completed` keep.
        """
        self.partial, self.completed, self._allowance = None, [], self._allowed()
        destination = Destination(self.bound, self._catalog)
        with reporting(progress, f"occluding {self.bound.model.name}") as report:
            for index in range(len(self.bound.images)):
                self.completed += self._run_image(index, destination, report)
            destination.finish()
        return self.completed if self.bound.several else self.completed[0]

    def stream(self) -> Iterator[Heatmap]:
        """Maps that fill up, the first after the first batch, the last one complete; image after image if there are several.

        Each is the map of the (first) class asked for, and holds its own copy of what was known when it was made. Positions
        are computed coarsely all over first, and what is not known yet (`Heatmap.known`) is interpolated, so every map is
        whole; one of masks has NaN there. The run stops when the iterator is closed. INTO is not carried out.
        """
        self._allowance = self._allowed()
        for index in range(len(self.bound.images)):
            with closing(self._steps(index)) as steps:
                yield from snapshots(steps)

    def answer(self, index: int) -> Heatmap:
        """The map of one of its images, of the first class asked for, all of it computed. INTO is not carried out."""
        with closing(self._steps(index, reuse=False)) as steps:
            *_, answer = steps
        return answer.heatmap()

    def estimate(self) -> Estimate:
        """Positions, seconds with an interval, and memory, without running the query; captures the model if need be.

        What is known of the first image from earlier queries is not counted, but in drill-downs and the like. Of
        several images, all together; those to come are guessed to have as many masks as the first. Raises CaptureError as
        `plan` does, and for a naive query of a model
        whose operators cannot be watched.
        """
        prepared = self._prepared(0)
        captured, plan = self._plan_for(prepared)
        images, model = len(self.bound.images), self.bound.model
        total = self._predicted(captured, plan, _is_prepared(captured))
        if self._allowed() and plan.tensor is not None and (exact := without_approximations(plan.tensor)) != plan.tensor:
            again = self._predicted(captured, replace(plan, tensor=exact), prepared=True)  # time that is left makes it exact
            total = replace(total + again, positions=total.positions)
        results = self._results(captured, prepared)
        if results is not None and (not plan.stages or self._allowed()):
            total = total.without(results.count())
        if images > 1:
            total += self._predicted(captured, plan, prepared=True) * (images - 1)
            kept = BYTES * total.positions * model.outputs  # the logits of every map
            total = replace(total, memory_bytes=total.memory_bytes + kept)
        found = estimate(total, model, plan.device, self._profiles, self.bound.settings["threads"])
        return found.at_most(self._allowed()) if self._allowed() else found

    def __repr__(self) -> str:
        return f"Query({self.bound.statement}) – .run() answers it, .explain() shows its plan"

    def _outcome(self, answer: Answer) -> Iterator[str]:
        """What an analysed run of an approximate plan came to: its goal, how far its time went, and the quality of the map."""
        if answer.execution.goal:
            yield answer.execution.goal
        if self._allowed():
            yield f"{answer.computed:,} of {answer.total:,} positions were computed within {self._allowed():g} s"
        if (quality := answer.heatmap().quality) is not None:
            yield str(quality)

    def _run_image(self, index: int, destination: Destination, report: Report) -> list[Heatmap]:
        answer: Answer | None = None
        try:
            with closing(self._steps(index)) as steps:
                for answer in steps:
                    if answer.done == 0:
                        destination.check(index, answer.targets)
                    report(*self._progress(index, answer))
            assert answer is not None
            return destination.take(index, answer.heatmaps())
        except KeyboardInterrupt:
            raise self._interrupted(index, answer, destination) from None

    def _progress(self, index: int, answer: Answer) -> tuple[int, int]:
        """(done, total) over all images; where images differ in their number of masks, those to come are guessed alike."""
        return index * answer.total + answer.done, len(self.bound.images) * answer.total

    def _interrupted(self, index: int, answer: Answer | None, destination: Destination) -> KeyboardInterrupt:
        if answer is None or answer.done == 0:
            return KeyboardInterrupt("interrupted before any position was done")
        self.partial = answer.snapshot()
        what = "masks" if self.partial.masks is not None else "positions"
        text = f"interrupted: {answer.done:,} of {answer.total:,} {what} were done"
        if len(self.bound.images) > 1:
            text += f" of image {index + 1} of {len(self.bound.images)}"
        try:
            self.partial = destination.keep_partial(index, self.partial)
        except KryptonError as error:
            return KeyboardInterrupt(f"{text}; they are not written: {error}")
        written = self.partial.info.get("written")
        return KeyboardInterrupt(f"{text}; they are in {written}" if written else text)

    def _steps(self, index: int, *, reuse: bool = True) -> Generator[Answer]:
        """The answer for one image, growing: once when only the base logits are known, then after every batch.

        However it ends, what was computed exactly is kept for other queries.
        """
        started, before = time.perf_counter(), self._planned
        prepared = self._prepared(index)
        captured, plan = self._plan_for(prepared)
        clock = self._clock(index, plan, time.perf_counter() if self._planned is not before else started)
        was_prepared = _is_prepared(captured)
        results = self._results(captured, prepared) if reuse else None
        execution = execute(
            plan,
            prepared.image.input,
            prepared.fill.values,
            weights=captured.model.weights if captured.model is not None else None,
            module=self._module_on(plan.device) if plan.tensor is None else None,
            settings=self.bound.settings,
            timed=True,
            scores=self.bound.scores,
            promise=promise(self.bound, prepared),
            profile=self._profiles.of(plan.device),
            known=results.find if results is not None else None,
            clock=clock,
        )
        with closing(execution), contextlib.ExitStack() as afterwards:
            afterwards.callback(native.compiling.start)
            answer = Answer(self.bound, prepared, plan, execution)
            if captured.model is not None and execution.learned:
                known = self._profiles.sensitivities
                known.learn(captured.model.graph, prepared.occlusions, plan.device, execution.learned)
            try:
                yield answer
                for batch in execution:
                    answer.take(batch)
                    yield answer
            finally:
                if results is not None:
                    answer.keep(results)
                if clock is not None:
                    self._allowance = max(self._allowance - clock.spent, 0.0)
            if not (execution.trimmed or execution.reused or plan.stages):  # else there was less to do than the plan says
                self._profiles.learn(plan.device, observed(plan, execution.actual))
                self._remember(captured, plan, was_prepared, execution.seconds)

    def _allowed(self) -> float:
        """The seconds of WITHIN, for all images together; 0 where the query has no deadline."""
        approximation = self.bound.approximation
        return 0.0 if approximation is None or approximation.within is None else approximation.within

    def _clock(self, index: int, plan: QueryPlan, started: float) -> Clock | None:
        """For an image: an equal part of what those before it left over."""
        if not self._allowed():
            return None
        images = len(self.bound.images)
        return Clock(self._allowance / (images - index), started, images)

    def _results(self, captured: Captured, prepared: Prepared) -> KnownResults | None:
        """What earlier queries found that this one may use and add to; None where it is to find all by itself."""
        settings = self.bound.settings
        if not settings["reuse_results"] or settings["debug"] or not captured.fingerprint:
            return None
        return KnownResults(self._catalog, captured.fingerprint, prepared, settings)

    def _with_known(self) -> QueryPlan:
        """The plan, and how much of it is known already."""
        prepared = self._prepared(0)
        captured, plan = self._plan_for(prepared)
        results = self._results(captured, prepared)
        count = 0 if results is None else results.count()
        return replace(plan, notes=(*plan.notes, *note_of_reuse(count, plan.occlusions.count)))

    def _prepared(self, index: int) -> Prepared:
        if index > 0:
            return self.bound.prepare(index)
        if self._first is None:
            self._first = self.bound.prepare(0)
        return self._first

    def _plan_for(self, prepared: Prepared) -> tuple[Captured, QueryPlan]:
        """The plan for an image's occlusions and the model as it is now."""
        bound, known, occlusions = self.bound, self._planned, prepared.occlusions
        if bound.mode == "naive":
            captured = self._graphs.uncaptured(bound.model)
        else:
            before = known[0] if known is not None else None
            captured = self._graphs.captured(bound.model, keep=bound.settings["cache_graphs"], before=before)
        if known is not None and known[0].same_as(captured) and known[1] is occlusions:
            return captured, known[2]
        if bound.device == "cpu":
            native.compiling.postpone()
        without = bound.device == "cpu" and native.compiling.pending
        plan = self._new_plan(captured, prepared)
        if without and (self._allowed() or worth_waiting(plan, native.compiling.seconds)):
            native.compiling.finish()
            without, plan = False, self._new_plan(captured, prepared)
        if without and plan.tensor is not None:
            return captured, replace(plan, notes=(*plan.notes, _STILL_COMPILING))  # not kept: the next run has them
        if self._allowed() and plan.tensor is not None and captured.model is not None:
            make_ready(plan.tensor, captured.model.weights, plan.device)  # else the first deadline would be spent on that
        self._planned = captured, occlusions, plan
        return captured, plan

    def _new_plan(self, captured: Captured, prepared: Prepared) -> QueryPlan:
        bound = self.bound
        approximation, sources = settle(bound, prepared, captured.key, self._tunings)
        plan = self._optimised(captured, prepared, approximation, bound.settings)
        plan = self._in_time(captured, prepared, plan) or plan
        if captured.model is None:
            plan = replace(plan, input_shape=bound.model.preprocessing.shape, batch=1 if captured.alone else plan.batch)
        notes = (_ALONE,) if captured.alone else ()
        return replace(plan, notes=(*bound.model.notes, *sources, *plan.notes, *notes))

    def _optimised(
        self, captured: Captured, prepared: Prepared, approximation: Approximation | None, settings: Settings
    ) -> QueryPlan:
        bound, occlusions = self.bound, prepared.occlusions
        return plan_query(
            captured.model,
            occlusions,
            mode=bound.mode,
            approximation=approximation,
            device=bound.device,
            model=bound.model.name,
            settings=settings,
            reason=captured.reason,
            profile=self._profiles.of(bound.device),
            sensitivities=self._sensitivities(captured, occlusions) if settings["tolerance"] else {},
        )

    def _in_time(self, captured: Captured, prepared: Prepared, plan: QueryPlan) -> QueryPlan | None:
        """The plan that a deadline makes of one, leaving out more than positions, where that is not written and of use."""
        bound, asked, deadline = self.bound, plan.approximation, self._allowed() / len(self.bound.images)
        written = not bound.tunable or bound.settings["tolerance"] or bound.approximation is None or bound.approximation.ssim
        if asked is None or not deadline or written or plan.tensor is None or not isinstance(plan.occlusions, Grid):
            return None
        total, results = self._predicted(captured, plan, prepared=True), self._results(captured, prepared)
        left = total if results is None else total.without(results.count())
        seconds = estimate(left, bound.model, plan.device, self._profiles, bound.settings["threads"]).seconds
        choice = cheaper(deadline, seconds)
        if choice is None:
            return None
        settings = Settings({**dict(bound.settings.items()), "tolerance": choice.tolerance})
        found = self._optimised(captured, prepared, replace(asked, keep=choice.keep), settings)
        assert found.tensor is not None
        measuring = self._predicted(captured, found, prepared=True).measuring
        if measuring > MOST_MEASURING * deadline or not (found.tensor.tolerance or found.tensor.keep < 1):
            return None
        note = f"{choice}: all positions would take about {duration(seconds)}, and there are {duration(deadline)}"
        return replace(found, notes=(note, *found.notes))

    def _sensitivities(self, captured: Captured, occlusions: Occlusions) -> Mapping[Reference, float]:
        """What earlier queries measured of the model's layers."""
        if captured.model is None:
            return {}
        return self._profiles.sensitivities.of(captured.model.graph, occlusions, self.bound.device)

    def _predicted(self, captured: Captured, plan: QueryPlan, prepared: bool) -> Prediction:
        """What a plan is predicted to take by the profile as it is now."""
        profile, known = self._profiles.of(plan.device), self._prediction
        if known is not None and known[0] is plan and known[1] is profile and known[2] == prepared:
            return known[3]
        prediction = self._predict(captured, plan, profile, prepared)
        self._prediction = plan, profile, prepared, prediction
        return prediction

    @staticmethod
    def _predict(captured: Captured, plan: QueryPlan, profile: DeviceProfile, prepared: bool) -> Prediction:
        if plan.tensor is not None:
            return predict(plan, profile, prepared=prepared)
        if captured.inference is None:
            raise CaptureError(f"nothing is known of model {plan.model} to estimate by: its operators cannot be watched")
        return predict_naive(plan, profile, captured.inference)

    def _remember(self, captured: Captured, plan: QueryPlan, prepared: bool, seconds: float) -> None:
        """Note for estimates how long it took, beside what is predicted now that the profile has learned from it."""
        try:
            prediction = self._predicted(captured, plan, prepared)
        except CaptureError:
            return  # not to be estimated, and yet it ran
        finished = Finished(architecture(self.bound.model), prediction.milliseconds, seconds)
        self._profiles.remember(plan.device, finished, self.bound.settings["threads"])

    def _module_on(self, device: str) -> nn.Module:
        """The model itself where it is to run; moved as a copy, so that the user's stays where it is."""
        module = self.bound.model.module
        if device_of(module) == torch.device(device):
            return module
        return copy.deepcopy(module).to(device)


def _is_prepared(captured: Captured) -> bool:
    """Whether an earlier run has laid out weights for kernels."""
    return captured.model is not None and captured.model.weights.is_prepared
