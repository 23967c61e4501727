"""Krypton's side of a comparison: a plan on tiles drawn evenly from its whole map, some in every round.

Borders so weigh as in the whole map. What happens once per map (base views, weights laid out for the kernels) is not in the
rounds; `charge` is every position's share of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import theory
from benchmarks.cases import even
from benchmarks.clock import clocked, timed
from krypton.executor import Execution, execute
from krypton.ir.occlusions import OcclusionTile
from krypton.ir.plan import QueryPlan
from krypton.ir.weights import Reference
from krypton.planner.capture import CapturedModel
from krypton.planner.tiles import thinned


class Tiled:
    """A plan ready to be measured: one cold run over all drawn tiles is behind it."""

    def __init__(
        self,
        captured: CapturedModel,
        plan: QueryPlan,
        image: Tensor,
        fill: Tensor,
        rounds: int,
        per_round: int,
        known: Mapping[str, Any] | None = None,
    ) -> None:
        """`known` is what else there is to say about the plan, for `facts`."""
        assert plan.tensor is not None
        self.captured, self.plan, self.image, self.fill, self.rounds = captured, plan, image, fill, rounds
        self.tiles = even(plan.tensor.tiling.tiles(plan.occlusions), rounds * per_round)
        self.known = dict(known or {})
        self.setups: list[float] = []
        self.rest = 0.0  # seconds of all rounds, setups aside
        self.learned: Mapping[Reference, float] = {}
        self.scores, self.cold = timed(lambda: self._scores())

    def _execute(self, tiles: Sequence[OcclusionTile]) -> Execution:
        return execute(self.plan, self.image, self.fill, weights=self.captured.weights, tiles=tiles)

    def _scores(self) -> Tensor:
        """Probabilities (n + 1, K) of the drawn tiles' positions in the order of the map, behind those of the image itself."""
        run = self._execute(self.tiles)
        self.learned = run.learned
        return self._gathered(run)

    def scores_of(self, tiles: Sequence[OcclusionTile]) -> Tensor:
        """The same of the positions of another plan's tiles."""
        if list(tiles) == self.tiles:
            return self.scores
        assert self.plan.tensor is not None
        chosen = [index for tile in tiles for index in tile.indices]
        mine = self.plan.tensor.tiling.tiles(self.plan.occlusions)
        return self._gathered(self._execute(thinned(mine, self.plan.occlusions, chosen)))

    @staticmethod
    def _gathered(run: Execution) -> Tensor:
        batches = list(run)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        return torch.cat([run.base_logits[None], torch.cat([batch.logits for batch in batches])[order]]).softmax(1)

    def round(self, turn: int) -> float:
        """Milliseconds per position of the round's tiles; all of them where there are fewer than rounds."""
        tiles = self.tiles[turn % self.rounds :: self.rounds] or self.tiles
        run, setup = timed(lambda: self._execute(tiles))
        seconds = clocked(lambda: list(run))
        self.setups.append(setup)
        self.rest += seconds
        return seconds / positions(tiles) * 1e3

    @property
    def once(self) -> float:
        """Milliseconds once per map: base views, and what the cold run took longer than the rounds did."""
        turns = max(len(self.setups), 1)
        warm = self.rest * self.rounds / turns
        setup = statistics.median(self.setups) if self.setups else 0.0
        return (setup + max(self.cold - setup - warm, 0.0)) * 1e3

    @property
    def charge(self) -> float:
        """Milliseconds per position for what happens once per map."""
        return self.once / self.plan.occlusions.count

    def multiply_adds(self) -> float:
        """Per position of the drawn tiles."""
        assert self.plan.tensor is not None
        return sum(theory.of_tiles(self.plan.tensor.graph, self.tiles).values()) / positions(self.tiles)

    def facts(self) -> dict[str, Any]:
        return self.known | {
            "once_ms": self.once,
            "setup_ms": [seconds * 1e3 for seconds in self.setups],
            "measured_positions": positions(self.tiles),
            "multiply_adds": self.multiply_adds(),
            "notes": list(self.plan.notes),
        }


def positions(tiles: Sequence[OcclusionTile]) -> int:
    return sum(len(tile.indices) for tile in tiles)
