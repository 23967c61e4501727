"""Answers as they come in: the logits of one image's occlusions, gathered from the executor's batches into heat maps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from krypton.bound import BoundQuery, Prepared
from krypton.errors import CatalogError, ExecutionError
from krypton.executor import Batch, Execution
from krypton.executor.interpolation import interpolated
from krypton.ir.occlusions import Grid, Masks
from krypton.ir.plan import QueryPlan
from krypton.known import KnownResults
from krypton.planner.explain import heading
from krypton.results import Heatmap, HeldOut
from krypton.results.classes import label_of

# A stream copies the logits for each map that it gives away, and interpolates; it spends at most about this share of its time
# on that.
_COPYING = 0.05


class Answer:
    """What is known so far of one image: `done` of `total` occlusions, after `seconds` of running."""

    def __init__(self, query: BoundQuery, prepared: Prepared, plan: QueryPlan, execution: Execution) -> None:
        if not bool(torch.isfinite(execution.base_logits).all()):
            raise ExecutionError(f"the model gives NaN or infinite outputs for {prepared.image.name}; is the image sound?")
        self.execution = execution
        self.targets = query.targets(execution.base_logits)
        self.total = prepared.occlusions.count
        self._query = query
        self._prepared = prepared
        self._plan = plan
        self._logits = torch.full((self.total, len(execution.base_logits)), torch.nan)
        self._known = torch.zeros(self.total, dtype=torch.bool)
        self._exact = torch.zeros(self.total, dtype=torch.bool)
        self._held_out: list[HeldOut] = []
        self._seen, self._measured = 0, False
        self._warnings = list(query.model.notes)

    @property
    def done(self) -> int:
        return int(self._known.sum())

    @property
    def computed(self) -> int:
        """How many positions the model was asked about."""
        return self._seen - self.execution.reused

    @property
    def seconds(self) -> float:
        return self.execution.seconds

    def take(self, batch: Batch) -> None:
        """Note the logits of a batch where there are no exact ones; of positions held out also what was thought of them."""
        if batch.thought is not None:
            self._held_out.append(HeldOut(batch.indices, batch.thought))
        self._measured |= batch.stage == "measure"
        if not (batch.stage == "interpolate" or (batch.stage == "hold_out" and self._measured)):
            self._seen += len(batch.indices)
        self._known[batch.indices] = True
        news = torch.tensor(batch.exact) | ~self._exact[batch.indices]  # what is exact stays so
        self._logits[batch.indices[news]] = batch.logits[news]
        self._exact[batch.indices] |= batch.exact

    def keep(self, results: KnownResults) -> None:
        """Add what was computed exactly to the known results; an answer is no worse for a catalog that cannot take them."""
        if int(self._exact.sum()) > self.execution.reused:
            try:
                results.keep(self._exact, self._logits, self.execution.base_logits)
            except CatalogError as error:
                self._warnings.append(f"what was computed is not kept for other queries: {error}")

    def heatmap(self, **info: Any) -> Heatmap:
        """The map of the first class that was asked for. It changes as more comes in."""
        return self._heatmap(self._logits, self._known, self._exact, info)

    def snapshot(self) -> Heatmap:
        """The map as it is now, whole: on a grid what is not known is interpolated, once anything is."""
        occlusions, known = self._prepared.occlusions, self._known
        if isinstance(occlusions, Grid) and 0 < self.done < self.total:
            logits = interpolated(self._logits, occlusions, known)
        else:
            logits = self._logits.clone()
        return self._heatmap(logits, known.clone(), self._exact.clone(), {})

    def _heatmap(self, logits: Tensor, known: Tensor, exact: Tensor, info: dict[str, Any]) -> Heatmap:
        query, occlusions = self._query, self._prepared.occlusions
        return Heatmap(
            logits=logits.view(*occlusions.shape, -1),
            base_logits=self.execution.base_logits,
            positions=occlusions.rectangles(),
            image=self._prepared.image,
            image_size=(query.model.preprocessing.height, query.model.preprocessing.width),
            target=self.targets[0],
            activation=query.model.activation,
            known=known.view(*occlusions.shape),
            exact=exact.view(*occlusions.shape),
            held_out=HeldOut.together(self._held_out),
            masks=occlusions.masks if isinstance(occlusions, Masks) else None,
            labels=query.model.labels,
            score_kind=query.score,
            info={**self._info(), **info},
        )

    def heatmaps(self) -> list[Heatmap]:
        """A map for every class that was asked for, over the same logits."""
        first = self.heatmap()
        return [replace(first, target=target) for target in self.targets]

    def _info(self) -> dict[str, Any]:
        query, reused = self._query, self.execution.reused
        approximation = self._plan.approximation
        tolerance = 0.0 if self._plan.tensor is None else self._plan.tensor.tolerance
        names = [] if approximation is None else approximation.names()
        if approximation is not None and tolerance:
            names.append(f"tolerance {tolerance:g}")
        refining = approximation is not None and (approximation.drilldown is not None or approximation.within is not None)
        refined = {"refined_for": self._label} if refining and not self._exact.all() else {}
        return {
            "statement": query.statement,
            "model": query.model.name,
            "source": query.model.source,
            "mode": self._plan.kind,
            "device": self._plan.device,
            "plan": heading(self._plan),
            "approximations": names,
            **refined,
            **({"goal": self.execution.goal} if self.execution.goal else {}),
            "precision": None if self.execution.precision is None else asdict(self.execution.precision),
            "fill": self._prepared.fill.description,
            "fill_hash": self._prepared.fill.content_hash,
            "seconds": self.seconds,
            "notes": [*self._plan.notes, *note_of_reuse(reused, self.total)],
            "reused": self.execution.reused,
            "warnings": list(self._warnings),
        }

    @property
    def _label(self) -> str:
        """Of the class that a drill-down refines the map for."""
        return label_of(self.targets[0], self._query.model.labels, self._query.model.outputs)


def note_of_reuse(known: int, total: int) -> list[str]:
    """What plans and maps say of positions that need not be computed, if there are any."""
    return [f"{known:,} of {total:,} positions are known from earlier queries"] if known else []


def snapshots(answers: Iterable[Answer]) -> Iterator[Heatmap]:
    """Maps of their own for answers that grow: the first, the complete last, and those between that copying has time for."""
    ready, last = 0.0, None
    for answer in answers:
        now = time.perf_counter()
        last = answer if answer.done else None
        if last is not None and now >= ready:
            heatmap, last = answer.snapshot(), None
            ready = now + (time.perf_counter() - now) / _COPYING
            yield heatmap
    if last is not None:
        yield last.snapshot()
