"""An engine that does not compute again what is known: exact logits of an earlier run on the same image and fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krypton.executor.engine import Batch, Engine, Seen
from krypton.executor.pacing import UNHURRIED, Pacing
from krypton.executor.precision import Precision
from krypton.ir.occlusions import Occlusions, OcclusionTile
from krypton.ir.plan import QueryPlan
from krypton.ir.weights import Reference
from krypton.planner.tiles import thinned


@dataclass(frozen=True, eq=False)
class Known:
    """Exact `logits` (n, K) of the occlusions at `indices` (n,) of the flattened query."""

    indices: Tensor
    logits: Tensor


class ReusingEngine:
    """Another engine, asked for the rest. Where that one's values are approximate by themselves it is asked for all of them:
    what they differ by from exact ones is measured."""

    def __init__(self, engine: Engine, occlusions: Occlusions, known: Known) -> None:
        self._engine, self._occlusions = engine, occlusions
        self._place = torch.full((occlusions.count,), -1)
        self._place[known.indices] = torch.arange(len(known.indices))
        self._given = torch.zeros(occlusions.count, dtype=torch.bool)
        self._logits = known.logits
        self.base_logits = engine.base_logits

    @property
    def precision(self) -> Precision | None:
        return self._engine.precision

    @property
    def learned(self) -> Mapping[Reference, float]:
        return self._engine.learned

    @property
    def seen(self) -> Seen:
        return self._engine.seen

    @property
    def exact(self) -> bool:
        return self._engine.exact

    def run(self, tiles: Sequence[OcclusionTile], *, exact: bool = False, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        if exact or self._engine.exact:
            wanted = torch.tensor([index for tile in tiles for index in tile.indices], dtype=torch.int64)
            known = wanted[self._place[wanted] >= 0]
            if len(known):
                self._given[known] = True
                self.seen.reused = int(self._given.sum())
                yield Batch(known, self._logits[self._place[known]])
                tiles = thinned(tiles, self._occlusions, wanted[self._place[wanted] < 0].tolist())
        yield from self._engine.run(tiles, exact=exact, pacing=pacing)

    def measure(self, tiles: Sequence[OcclusionTile], *, pacing: Pacing = UNHURRIED) -> Iterator[Batch]:
        return self._engine.measure(tiles, pacing=pacing)

    def settled(self, plan: QueryPlan, keep: float) -> QueryPlan:
        return self._engine.settled(plan, keep)
