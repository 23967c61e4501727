"""Predictions corrected by finished queries: least squares on logarithms, with an interval.

The cost model gives a query's milliseconds by part. Every part has a factor by which the model is wrong, found from finished
queries: the sum of the corrected parts is fitted to the seconds that they took, in the sense of least squares of logarithms
(relative errors). A factor is made of what all of a device has in common, what a part has, and what the part has in this model;
each is drawn towards none (a normal prior, so that this is Bayesian regression, by the Gauss-Newton method). An unknown model
therefore gets what the device's other models say, one that was seen often its own line; and the interval follows: wide where
nothing is known, later the spread of what was seen.

The Krypton papers estimate run time by a linear regression for each model, seconds on the number of positions or their
multiply-adds. That is the special case of one model and two parts, one that is paid once and one that grows with the positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

COVERAGE = 0.9
"""Share of queries that should end within the interval."""

# Standard deviations of a factor's natural logarithm before anything is known: what a device's parts have in common, what each
# part has besides, what a model has, and what each of its parts has.
_DEVICE, _PART, _MODEL, _PART_OF_MODEL = 0.4, 0.25, 0.1, 0.12
_WIDER = {"precision": 3.0, "cut": 1.5}
# ... of a model: whether proposals of low precision have to be mended, and how much a cut leaves, depends on it
_VARYING = {"precision": 0.4, "cut": 0.1}  # ... of a query: and on the image
_NOISE = 0.07
_DRIFT = 0.06  # of a machine's speed, from when queries were seen to when the next one runs
_JITTER_MS = 10.0  # what comes and goes in any query, and hurts the estimates of short ones
_CERTAINTY = 10.0  # how many queries these numbers are worth against the spread that is seen
_DISTURBED = 4.0  # degrees of freedom of the noise (Student's): queries that something else slowed down count little
_ROUNDS = 15

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """A finished query: its model, what was predicted of it by part (milliseconds), and the seconds that it took."""

    model: str
    milliseconds: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Corrected:
    """Seconds: the estimate, and between which ends `COVERAGE` of such queries should be."""

    seconds: float
    low: float
    high: float


def correct(milliseconds: Mapping[str, float], model: str, finished: Sequence[Finished]) -> Corrected:
    """The seconds of a query from its predicted milliseconds by part, and the finished queries of its device."""
    predicted = sum(milliseconds.values())
    if predicted <= 0:
        return Corrected(0.0, 0.0, 0.0)
    known = [query for query in finished if query.seconds > 0 and sum(query.milliseconds.values()) > 0]
    regression = _Regression([*known, Finished(model, milliseconds, predicted / 1e3)])
    logarithm, deviation = regression.fit()
    from scipy.special import stdtrit  # takes longer to import than all the rest

    reach = float(stdtrit(_CERTAINTY + len(known), (1 + COVERAGE) / 2)) * deviation
    return Corrected(*(math.exp(logarithm + end * reach) / 1e3 for end in (0, -1, 1)))


class _Regression:
    """The queries as arrays; the last one is asked about, the others are known."""

    def __init__(self, queries: Sequence[Finished]) -> None:
        parts = sorted({part for query in queries for part in query.milliseconds})
        models = sorted({query.model for query in queries})
        table = np.array([[max(query.milliseconds.get(part, 0.0), 0.0) for part in parts] for query in queries])
        self.seconds: Array = np.log([1e3 * query.seconds for query in queries[:-1]])
        with np.errstate(divide="ignore"):
            self.parts: Array = np.log(table)
        varying = np.array([_VARYING.get(part, 0.0) for part in parts])
        totals = table.sum(1)
        self.noise: Array = _NOISE**2 + (_JITTER_MS / totals) ** 2 + (table / totals[:, None] * varying).sum(1) ** 2
        # terms: of the device, of every part, and of each model both again
        wider = np.array([_WIDER.get(part, 1.0) for part in parts])
        common, apart = np.ones((len(parts), 1)), np.eye(len(parts))
        place = [models.index(query.model) for query in queries]
        own = np.eye(len(models))[place]  # (queries, models)
        of_model = np.concatenate([common, apart], 1)  # (parts, 1 + parts)
        every = np.broadcast_to(of_model, (len(queries), *of_model.shape))
        deviating = np.einsum("qm,pt->qpmt", own, of_model).reshape(len(queries), len(parts), -1)
        self.terms: Array = np.concatenate([every, deviating], 2)
        """(queries, parts, terms): 1 where a term is part of the logarithm of a part's factor."""
        deviations = [_DEVICE, *[_PART] * len(parts), *np.tile([_MODEL, *(_PART_OF_MODEL * wider)], len(models))]
        self.variances: Array = np.square(deviations)

    def fit(self) -> tuple[float, float]:
        """The logarithm of the last query's milliseconds, and its standard deviation.

        In the form that inverts a matrix of queries, not of terms: there may be many models.
        """
        factors = np.zeros(len(self.variances))
        for _ in range(_ROUNDS):
            sums, slopes = self._sums(factors)
            residuals = self.seconds - sums[:-1]
            # reweighting: the larger a residual, the noisier the query is taken to be
            noise = self.noise[:-1] * (_DISTURBED + residuals**2 / self.noise[:-1]) / (_DISTURBED + 1)
            spread = slopes[:-1] * self.variances
            covariance = spread @ slopes[:-1].T + np.diag(noise)
            factors = spread.T @ np.linalg.solve(covariance, residuals + slopes[:-1] @ factors)
        sums, slopes = self._sums(factors)
        surprise = float(((self.seconds - sums[:-1]) ** 2 / noise).sum() + (factors**2 / self.variances).sum())
        scale = (_CERTAINTY + surprise) / (_CERTAINTY + len(self.seconds))
        shared = spread @ slopes[-1]
        variance = float(self.variances @ slopes[-1] ** 2 - shared @ np.linalg.solve(covariance, shared)) + self.noise[-1]
        return float(sums[-1]), math.sqrt(variance * scale + _DRIFT**2)

    def _sums(self, factors: Array) -> tuple[Array, Any]:
        """The logarithm of each query's corrected sum, and its derivatives (queries, terms)."""
        corrected = self.parts + self.terms @ factors
        sums = np.logaddexp.reduce(corrected, 1)
        return sums, np.einsum("qp,qpt->qt", np.exp(corrected - sums[:, None]), self.terms)
