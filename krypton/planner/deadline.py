"""What a query with a deadline leaves out besides positions, by how far it would get without.

A cut of small changes and low precision err little, and what they save is spent on more positions: interpolating between few
errs more. Both must be measured first, at a few positions, which short deadlines leave no time for (docs/approximation.md).
"""

from __future__ import annotations

from dataclasses import dataclass

KEEP, TOLERANCE = 0.999, 0.05
"""What may be chosen: of options that err little, those that save most."""

WORTH_SECONDS = 5.0
"""Queries that all in all take less spend too much of it on measuring."""


@dataclass(frozen=True)
class Cheaper:
    """Options of the query, as WITH has them."""

    tolerance: float
    keep: float | None = None

    def __str__(self) -> str:
        keep = "" if self.keep is None else f"keep {self.keep:g} and "
        return f"{keep}tolerance {self.tolerance:g}"


CHOICES = ((0.4, Cheaper(TOLERANCE, KEEP)), (0.2, Cheaper(TOLERANCE)))
"""From that part of the time for all positions on, the most first."""

ENOUGH = 0.9
"""From here on all positions may well be computed exactly: predictions are that uncertain."""

MOST_MEASURING = 0.25
"""Of the deadline, what measuring may be predicted to take."""


def cheaper(deadline: float, seconds: float) -> Cheaper | None:
    """What to choose for so many seconds where all positions are predicted to take `seconds`; None for nothing."""
    if seconds < WORTH_SECONDS or deadline >= ENOUGH * seconds:
        return None
    return next((choice for least, choice in CHOICES if deadline >= least * seconds), None)
