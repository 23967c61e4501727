"""ESTIMATE: how long a query will take and how much memory, without running it. What is answered, and what it is founded on.

The planner predicts (`planner.prediction`), finished queries correct (`planner.correction`); this puts the two together for a
session, whose catalog remembers both the device's profile and its finished queries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from krypton.models import Model
from krypton.planner.correction import COVERAGE, correct
from krypton.planner.prediction import Prediction
from krypton.profiles import Profiles

_SIGNS = 16


@dataclass(frozen=True)
class Estimate:
    """What a query will take. Prints as text.

    `seconds` are those of `Query.run` with model and plan ready, base views included; nine of ten queries should end between
    `low` and `high`. `memory_bytes`: the peak, beyond what the process has with the model loaded. `basis`: what this is founded
    on.
    """

    positions: int
    seconds: float
    low: float
    high: float
    memory_bytes: int
    basis: str

    def at_most(self, seconds: float) -> Estimate:
        """The same for a query that ends by then."""
        low, found, high = (min(end, seconds) for end in (self.low, self.seconds, self.high))
        return replace(self, seconds=found, low=low, high=high)

    def __str__(self) -> str:
        memory = f"{self.memory_bytes / 2**20:,.0f} MB of memory beyond the model"
        return (
            f"{self.positions:,} positions, about {duration(self.seconds)}, {memory}\n"
            f"between {duration(self.low)} and {duration(self.high)} in {COVERAGE:.0%} of cases; founded on: {self.basis}"
        )


def estimate(prediction: Prediction, model: Model, device: str, profiles: Profiles, threads: int | None = None) -> Estimate:
    """The answer for a query of which this is predicted, on a device ("cpu", "cuda:0"); `threads` None: as it is set."""
    name, finished = architecture(model), profiles.finished(device, threads)
    found = correct(prediction.milliseconds, name, finished)
    basis = [profiles.of(device).origin, _finished(len(finished), sum(query.model == name for query in finished))]
    memory = prediction.memory_bytes
    return Estimate(prediction.positions, found.seconds, found.low, found.high, memory, ", ".join(basis))


def _finished(queries: int, of_model: int) -> str:
    if not queries:
        return "no finished queries yet"
    return f"{queries} finished {'query' if queries == 1 else 'queries'}, {of_model or 'none'} of this model"


def architecture(model: Model) -> str:
    """What models of one speed have in common, whatever their names and weights: modules, parameters' shapes, input size."""
    modules = [type(part).__name__ for part in model.module.modules()]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.module.named_parameters()]
    return hashlib.sha256(f"{modules}{shapes}{model.preprocessing.shape}".encode()).hexdigest()[:_SIGNS]


def duration(seconds: float) -> str:
    """Seconds with two or three digits, in the unit that suits them."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
