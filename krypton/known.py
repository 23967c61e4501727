"""Known results: exact logits that queries found, kept in the catalog for those that ask for the same.

A result is known by everything it depends on: the model's fingerprint (weights, graph, code), the image and the fill as the
model receives them, so that preprocessing and seed are in it, and the patch or the masks. Which device and which kernels
computed it is not: exact values are equal within the bound of exact mode. A row of the catalog holds all positions of one such
key, so that another stride or region, or the rest of an interrupted run, takes from it what it shares.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krypton.bound import Prepared
from krypton.catalog import StoredResults
from krypton.executor import Known
from krypton.ir.occlusions import Grid, Occlusions
from krypton.settings import Settings

_SAME = 1e-3  # of the largest base logit: a model that answers otherwise has code that no fingerprint sees
_MEGABYTE = 2**20


class ResultStore(Protocol):
    """What is asked of a catalog."""

    def get_results(self, key: str) -> StoredResults | None: ...
    def put_results(self, key: str, results: StoredResults, most_bytes: int) -> None: ...


class KnownResults:
    """What is known of one model's answers to one kind of occlusion of one image, as the store has it."""

    def __init__(self, store: ResultStore, model: str, prepared: Prepared, settings: Settings) -> None:
        self._store, self._occlusions = store, prepared.occlusions
        self._most_bytes = settings["results_megabytes"] * _MEGABYTE
        self._key = _key(model, prepared)
        self._places = _places(prepared.occlusions)

    def count(self) -> int:
        """How many of the query's positions are known."""
        stored = self._stored()
        return 0 if stored is None else int(np.isin(_numbers(self._places), _numbers(stored[0])).sum())

    def find(self, base_logits: Tensor) -> Known | None:
        """What is known of the query's positions, by a model with these base logits (K,); None when nothing is."""
        stored = self._stored()
        if stored is None or not _agree(stored[2], base_logits):
            return None
        _, mine, theirs = np.intersect1d(_numbers(self._places), _numbers(stored[0]), return_indices=True)
        return Known(torch.from_numpy(mine), torch.from_numpy(stored[1][theirs])) if len(mine) else None

    def keep(self, exact: Tensor, logits: Tensor, base_logits: Tensor) -> None:
        """Add the exact ones (n,) among the query's logits (n, K) to what is known; raises CatalogError."""
        places, values = self._places[exact.numpy()], logits[exact].numpy()
        if len(places) * (logits.shape[1] * 4 + 8) > self._most_bytes:
            return
        stored = self._stored()
        if stored is not None and _agree(stored[2], base_logits):
            others = ~np.isin(_numbers(stored[0]), _numbers(places))
            places, values = np.concatenate([places, stored[0][others]]), np.concatenate([values, stored[1][others]])
        base = base_logits.float().numpy()
        self._store.put_results(
            self._key, StoredResults(*(array.tobytes() for array in (places, values, base))), self._most_bytes
        )

    def _stored(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]] | None:
        row = self._store.get_results(self._key)
        if row is None:
            return None
        places, base = np.frombuffer(row.places, np.int32).reshape(-1, 2), np.frombuffer(row.base, np.float32)
        return places, np.frombuffer(row.logits, np.float32).reshape(len(places), -1), base


def _key(model: str, prepared: Prepared) -> str:
    occlusions = prepared.occlusions
    what = f"patch {occlusions.patch}" if isinstance(occlusions, Grid) else f"masks {occlusions.content_hash}"
    parts = "\0".join([model, prepared.image.content_hash, prepared.fill.content_hash, what])
    return hashlib.sha256(parts.encode()).hexdigest()


def _places(occlusions: Occlusions) -> NDArray[np.int32]:
    """(n, 2): top and left of every patch; the number of every mask."""
    if isinstance(occlusions, Grid):
        return occlusions.rectangles().reshape(-1, 4)[:, :2].numpy().astype(np.int32)
    return np.stack([np.arange(occlusions.count), np.zeros(occlusions.count)], 1).astype(np.int32)


def _numbers(places: NDArray[np.int32]) -> NDArray[np.int64]:
    """One number for each place."""
    return (places[:, 0].astype(np.int64) << 32) | places[:, 1]


def _agree(stored: NDArray[np.float32], base_logits: Tensor) -> bool:
    """Whether base logits are the same but for rounding."""
    found = base_logits.float().numpy()
    scale = float(np.abs(found).max()) or 1.0
    return stored.shape == found.shape and float(np.abs(stored - found).max()) <= _SAME * scale
