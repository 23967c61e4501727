"""Chains of nodes in mode full: all but the last only note what they are to do, and the last runs them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from krypton.ir.delta import Gated
from krypton.ir.graph import Node
from krypton.kernels.chain import LEAST_TURNS, Chain
from krypton.kernels.whole import WholeRunner


@dataclass
class Linked:
    """Whole values still to be computed: nodes, what runs them, and their inputs. `spent`: seconds of each of them and of the
    last, once they have run, all threads together."""

    links: list[tuple[Node, WholeRunner, Sequence[Any]]]
    spent: list[float] = field(default_factory=list)

    def shares(self, last: Node, seconds: float) -> Iterator[tuple[Node, float]]:
        """What part of so many seconds each node took."""
        nodes = [*(node for node, _, _ in self.links), last]
        total = max(sum(self.spent), 1e-9)
        return ((node, seconds * spent / total) for node, spent in zip(nodes, self.spent, strict=True))


def inner(node: Node, run: WholeRunner) -> WholeRunner:
    """A node of a chain that is not the last."""

    def note(inputs: Sequence[Any], room: Tensor | None = None) -> Linked:
        before = inputs[0].links if isinstance(inputs[0], Linked) else []
        return Linked([*before, (node, run, inputs)])

    return note


def last(run: WholeRunner) -> WholeRunner:
    """The last node of a chain."""

    def finish(inputs: Sequence[Any], room: Tensor | None = None) -> Any:
        linked = inputs[0]
        assert isinstance(linked, Linked)
        batch = max(_batch(value) for _, _, sources in linked.links for value in sources if not isinstance(value, Linked))
        if batch < LEAST_TURNS * torch.get_num_threads():
            value = None
            for _, runner, sources in linked.links:
                value = runner(sources if value is None else [value, *sources[1:]], None)
            return run([value, *inputs[1:]], room)
        chain = Chain(batch, [node.shape for node, _, _ in linked.links])
        slot = None
        for node, runner, sources in linked.links:
            before, slot = slot, chain.slot(*node.shape)
            runner(sources if before is None else [before, *sources[1:]], slot, chain)
        result = run([slot, *inputs[1:]], room, chain)
        linked.spent = chain.run()
        return result

    return finish


def _batch(value: Tensor | Gated) -> int:
    return len(value.gate if isinstance(value, Gated) else value)
