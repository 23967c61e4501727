"""Who takes part in `benchmarks.exact`: one table, a row per contender.

A contender is started once, which is where it finds its best batch size and warms up, and is then measured in every round.
A new one is one function and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from benchmarks.cases import Subject
from benchmarks.clock import clocked, steady, timed
from benchmarks.machine import Allocator
from benchmarks.peers import captum, monai
from benchmarks.tiled import Tiled
from krypton.planner.optimizer import plan_query
from krypton.settings import Settings

BATCHES = (8, 16, 32, 64)
TOLERANCE = {"tolerance": 0.05}


class Running(Protocol):
    """A contender that has started. `charge` is to be added to the median of its rounds, all in milliseconds per position."""

    def round(self, turn: int) -> float: ...
    @property
    def charge(self) -> float: ...
    def facts(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Start:
    """What contenders may look at when they start."""

    subject: Subject
    rounds: int
    tiles: int
    others: Mapping[str, Running]


@dataclass(frozen=True)
class Contender:
    """`side`: stock inference without any explanation around it, another tool, or Krypton. `start` gives None where the
    contender cannot take part."""

    name: str
    title: str
    side: Literal["stock", "peer", "krypton"]
    start: Callable[[Start], Running | None]
    allocators: tuple[Allocator, ...] = ("tuned", "default")


class Stock:
    """The model itself on batches that are ready beforehand: the batch of 8, 16, 32 or 64 that is fastest."""

    charge = 0.0

    def __init__(
        self, subject: Subject, model: nn.Module, memory_format: torch.memory_format, batch: int | None = None
    ) -> None:
        self.model = model
        self.tried: dict[int, float] = {}
        largest = 64 if subject.case.size <= 320 else 16
        for size in [b for b in BATCHES if b <= largest] if batch is None else [batch]:
            images = subject.images(size, memory_format)
            self.tried[size] = min(clocked(lambda images=images: model(images)) for _ in range(2)) / size * 1e3  # type: ignore[misc]
        self.batch = min(self.tried, key=self.tried.__getitem__)
        self.images = subject.images(self.batch, memory_format)

    def round(self, turn: int) -> float:
        return steady(lambda: self.model(self.images)) / self.batch * 1e3

    def facts(self) -> dict[str, Any]:
        return {"batch": self.batch, "by_batch_ms": self.tried}


def naive(start: Start) -> Running:
    """Eager, contiguous: what users have who did nothing about it."""
    return Stock(start.subject, start.subject.model, torch.contiguous_format)


def channels_last(start: Start) -> Running:
    """Eager, channels innermost in memory."""
    return Stock(start.subject, start.subject.channels_last, torch.channels_last)


def compiled(start: Start) -> Running:
    """`torch.compile` with freezing, at the batch that is best for channels_last."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    model, other = start.subject.channels_last, start.others.get("channels_last")
    return Stock(start.subject, torch.compile(model), torch.channels_last, other.batch if isinstance(other, Stock) else 32)  # type: ignore[arg-type]


def exact(start: Start) -> Running:
    """An exact query."""
    return _krypton(start)


def tolerant(start: Start) -> Running | None:
    """A query WITH (tolerance => 0.05), of a model that no query asked before."""
    return Tolerant(_krypton(start, settings=Settings(TOLERANCE)), start.others.get("exact"))


def tolerant_again(start: Start) -> Running | None:
    """The next such query, which knows what the first one measured; none where that had nothing to measure."""
    first = start.others.get("tolerance")
    if not isinstance(first, Tolerant) or not first.tiled.learned:
        return None
    settings, known = Settings(TOLERANCE), first.tiled.learned
    return Tolerant(_krypton(start, settings=settings, sensitivities=known), start.others.get("exact"))


class Tolerant:
    """As `Tiled`, and compares its probabilities with those of the exact contender."""

    def __init__(self, tiled: Tiled, exact: Running | None) -> None:
        self.tiled, self.exact = tiled, exact

    def round(self, turn: int) -> float:
        return self.tiled.round(turn)

    @property
    def charge(self) -> float:
        return self.tiled.charge

    def facts(self) -> dict[str, Any]:
        facts = self.tiled.facts()
        if isinstance(self.exact, Tiled):
            exact = self.exact.scores_of(self.tiled.tiles)
            target = int(exact[0].argmax())
            mine, true = self.tiled.scores[:, target], exact[:, target]
            drops = (true[0] - true[1:]).square().mean().sqrt()
            facts["error"] = float((mine - true)[1:].square().mean().sqrt() / drops.clamp(min=1e-30))
        return facts


def _krypton(start: Start, **options: Any) -> Tiled:
    subject = start.subject
    plan, planned = timed(lambda: plan_query(subject.captured, subject.grid, model=subject.case.name, **options))
    return Tiled(subject.captured, plan, subject.image, subject.fill, start.rounds, start.tiles, {"plan_s": planned})


CONTENDERS = (
    Contender("naive", "naive", "stock", naive),
    Contender("channels_last", "channels_last", "stock", channels_last),
    # not of interest to users of peers, and it takes minutes
    Contender("compiled", "compiled", "stock", compiled, ("tuned",)),
    Contender("captum", "Captum", "peer", captum),
    Contender("monai", "MONAI", "peer", monai),
    Contender("exact", "exact", "krypton", exact),
    Contender("tolerance", "tolerance 0.05", "krypton", tolerant),
    Contender("tolerance_again", "the same, model seen before", "krypton", tolerant_again),
)
"""In the order in which they start; later ones may look at earlier ones."""
