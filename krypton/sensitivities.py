"""What a session knows of how models bear low precision: the error of the scores per error of a layer, measured by queries.

Kept in the catalog, by everything it depends on but the image: the captured graph with the content of its weights, the size
of what is occluded, and the device. Every query with a tolerance measures the error on its own image all the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping

import torch

from krypton.catalog import Catalog
from krypton.ir.graph import Graph
from krypton.ir.occlusions import Masks, Occlusions
from krypton.ir.serde import graph_to_json
from krypton.ir.weights import Reference
from krypton.planner.calibration import device_name

NEWEST = 0.5
"""The latest query's weight against all earlier ones, in logarithms: images differ."""


class Sensitivities:
    """By the reference of a layer's weight; empty for what no query measured."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def of(self, graph: Graph, occlusions: Occlusions, device: str) -> dict[Reference, float]:
        """Those of a captured graph's layers."""
        return self._kept(_key(graph, occlusions, device))

    def learn(self, graph: Graph, occlusions: Occlusions, device: str, found: Mapping[Reference, float]) -> None:
        """What a query measured; layers that it did not keep what they had."""
        found = {layer: value for layer, value in found.items() if 0 < value < math.inf}
        if not found:
            return
        key = _key(graph, occlusions, device)
        known = self._kept(key)
        blended = {layer: value if layer not in known else _blend(known[layer], value) for layer, value in found.items()}
        if blended != {layer: known.get(layer) for layer in blended}:
            self._catalog.put_sensitivities(key, json.dumps(known | blended))

    def _kept(self, key: str) -> dict[Reference, float]:
        text = self._catalog.get_sensitivities(key)
        return {} if text is None else {str(layer): float(value) for layer, value in json.loads(text).items()}


def _blend(known: float, value: float) -> float:
    return value if value == known else known ** (1 - NEWEST) * value**NEWEST


def _key(graph: Graph, occlusions: Occlusions, device: str) -> str:
    patch = "masks" if isinstance(occlusions, Masks) else list(occlusions.patch)
    parts = [graph_to_json(graph), patch, device_name(torch.device(device))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
