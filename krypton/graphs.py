"""Captured graphs, kept: in memory while their module lives, in the catalog for later sessions.

Both are found by `fingerprint`, so a model whose weights or code changed is captured anew. With a graph the catalog keeps
what the model said of a trial image when the graph was verified; before the graph is used again, the model is asked
once more. So code that no fingerprint sees (a function that the model calls) costs time, never a wrong answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from krypton.errors import CaptureError, KryptonError
from krypton.fingerprint import NotKeptError, fingerprint, hash_tensors, tensors_of
from krypton.ir.serde import graph_from_json, graph_to_json
from krypton.ir.weights import Reference, WeightStore, content_hash, leaves
from krypton.models import Model, Shape, try_out
from krypton.planner.capture import CapturedModel, capture, check_weights, from_program
from krypton.planner.inference import Inference, watch
from krypton.planner.trials import TOLERANCE, Trial, device_of
from krypton.planner.whole import run_whole

_TRIAL = "trial"
"""Beside a graph's own tensors: the model's logits (1, K) for the trial image."""

Origin = Literal["captured", "memory", "catalog"]


class GraphStore(Protocol):
    """What is asked of a catalog."""

    def get_graph(self, key: str) -> tuple[str, bytes] | None: ...
    def put_graph(self, key: str, graph: str, tensors: bytes) -> None: ...


@dataclass(frozen=True, eq=False)
class Captured:
    """A model's graph, or None with the `reason` why there is none; then `alone` says whether images must go one by one, and
    `inference` what the model does with one, for estimates (None where it cannot be watched).

    Of a model without a fingerprint, `seen` are the hashes of its weights, and what it said of the trial image. `key` is the
    fingerprint, or one of `seen`: equal for models that answer alike.
    """

    model: CapturedModel | None
    origin: Origin
    reason: str = ""
    alone: bool = False
    seen: tuple[Mapping[str, Reference], Tensor] | None = None
    inference: Inference | None = None
    key: str = ""

    @property
    def fingerprint(self) -> str:
        """What the model was found to be, "" for one that has none."""
        return self.key if self.seen is None else ""

    def same_as(self, other: Captured) -> bool:
        """Whether plans made for one will do for the other."""
        return (self.model, self.reason, self.alone) == (other.model, other.reason, other.alone)


class GraphCache:
    """The captured graphs of a session. `store` is a catalog that outlives it, or None."""

    def __init__(self, store: GraphStore | None = None) -> None:
        self._store = store
        self._memory: dict[tuple[int, Shape], tuple[weakref.ref[nn.Module], str, Captured]] = {}

    def captured(self, model: Model, *, keep: bool = True, before: Captured | None = None) -> Captured:
        """The graph of a model as it is now; `keep` allows the catalog to be used.

        `before` is what the same query captured earlier. A model without a fingerprint is not captured again for it, while
        its weights are the same and it says the same of a trial image; for other queries it is.
        Raises CaptureError for weights or outputs that are not finite, which is for the user to mend. Whatever else
        prevents capture is the `reason` in what is returned.
        """
        shape = model.preprocessing.shape
        hashes = hash_tensors(tensors_of(model.module, model.program))
        try:
            key = fingerprint(model.module, model.program, shape, hashes)
        except NotKeptError:
            return _without_fingerprint(model, hashes, before)
        place = id(model.module), shape
        known = self._memory.get(place)
        if known is not None and known[0]() is model.module and known[1] == key:
            return replace(known[2], origin="memory")
        store = self._store if keep else None
        found = _load(store, key, hashes, model) if store is not None else None
        if found is None:
            found = _capture(model)
            if store is not None and found.model is not None:
                store.put_graph(key, *_entry(found.model, set(hashes.values()), model))
        found = replace(found, key=key)
        self._memory[place] = weakref.ref(model.module, lambda _: self._memory.pop(place, None)), key, found
        return found

    def uncaptured(self, model: Model) -> Captured:
        """What a naive run must know of a model; raises CaptureError as `captured` does."""
        check_weights(model.module)
        return _uncaptured(model)


def _without_fingerprint(model: Model, hashes: Mapping[str, Reference], before: Captured | None) -> Captured:
    """See `GraphCache.captured`."""
    check_weights(model.module)
    trial = try_out(model.module, _noise(model, 1))
    if before is not None and before.seen is not None and before.seen[0] == hashes and torch.equal(before.seen[1], trial):
        return before
    return replace(_capture(model), seen=(hashes, trial), key=_weak_key(model, hashes, trial))


def _weak_key(model: Model, hashes: Mapping[str, Reference], trial: Tensor) -> str:
    """In the place of a fingerprint: structure as printed, weights, and what was said of the trial image."""
    parts = repr(model.module), str(model.preprocessing.shape), *(f"{name}={value}" for name, value in hashes.items())
    digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass"))
    digest.update(trial.detach().cpu().contiguous().numpy().tobytes())
    return f"unseen code {digest.hexdigest()}"


def _capture(model: Model) -> Captured:
    check_weights(model.module)
    try:
        if model.program is None:
            captured = capture(model.module, model.preprocessing.shape)
        else:
            captured = from_program(model.program, model.preprocessing.shape, device_of(model.module))
            if not _agrees(captured, model):
                raise CaptureError("the captured graph does not compute what the program computes")
    except CaptureError as error:
        return _uncaptured(model, str(error))
    return Captured(captured, "captured")


def _uncaptured(model: Model, reason: str = "") -> Captured:
    images, inference = _noise(model, 2), None
    try_out(model.module, images[:1])  # says what is wrong with a model that takes no images at all
    with contextlib.suppress(CaptureError):
        inference = watch(model.module, images[:1])
    return Captured(None, "captured", reason, alone=_needs_to_be_alone(model, images), inference=inference)


def _needs_to_be_alone(model: Model, images: Tensor) -> bool:
    """Whether the model gives an image another answer in company, or takes no company at all."""
    try:
        return Trial(model.module, images).mixes()
    except Exception:  # whatever the model's own code raises
        return True


def _agrees(captured: CapturedModel, model: Model) -> bool:
    """Whether graph and model give a trial image the same logits."""
    image = _noise(model, 1)
    return Trial(model.module, image).agrees(run_whole(captured.graph, captured.weights, image))


def _same(given: Tensor, trial: Tensor) -> bool:
    """Whether a model said the same of the trial image before: only rounding may be another."""
    scale = float(trial.abs().max()) or 1.0
    return given.shape == trial.shape and float((given - trial).abs().max()) <= TOLERANCE * scale


def _noise(model: Model, count: int) -> Tensor:
    images = torch.randn(count, *model.preprocessing.shape, generator=torch.Generator().manual_seed(1))
    return images.to(device_of(model.module))


def _entry(captured: CapturedModel, given: set[Reference], model: Model) -> tuple[str, bytes]:
    """A graph as the catalog keeps it: JSON, and those tensors that are not the model's own (folded constants)."""
    stored = {leaf for reference in captured.graph.references() for leaf in leaves(reference)}
    own = {leaf: captured.weights.get(leaf).cpu().clone().contiguous() for leaf in sorted(stored - given)}
    return json.dumps(graph_to_json(captured.graph)), save_tensors({**own, _TRIAL: try_out(model.module, _noise(model, 1))})


def _load(store: GraphStore, key: str, hashes: Mapping[str, Reference], model: Model) -> Captured | None:
    """A graph from the catalog with the model's weights in their places; None unless it is there, whole and right."""
    entry = store.get_graph(key)
    if entry is None:
        return None
    tensors = tensors_of(model.module, model.program)
    device = device_of(model.module)
    try:
        own = load_tensors(bytes(entry[1]))
        trial = own.pop(_TRIAL)
        if any(content_hash(tensor) != name for name, tensor in own.items()):
            return None
        weights = {reference: tensors[name].detach() for name, reference in hashes.items()}
        weights.update({name: tensor.to(device) for name, tensor in own.items()})
        graph = graph_from_json(json.loads(entry[0]))
        captured = CapturedModel(graph, WeightStore(weights).restrict(graph.references()), model.preprocessing.shape)
        return Captured(captured, "catalog") if _same(try_out(model.module, _noise(model, 1)), trial) else None
    except (KryptonError, SafetensorError, ValueError, KeyError, TypeError):
        return None
