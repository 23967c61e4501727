"""Other tools' occlusion maps as contenders: Captum's `Occlusion` and MONAI's `OcclusionSensitivity`, at their best batch.

What is timed is what a user pays per position, the tool's own work included: the model is wrapped to note when each forward
pass starts, and stops the tool once it was watched for long enough. From the start of one pass to the start of a later one,
everything in between has happened. What a tool does once per map is not counted, in its favour. Models are eager and
contiguous, as their users have them; patch 16, stride 4, a constant fill.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from benchmarks.cases import PATCH, STRIDE, Subject
from benchmarks.clock import ENOUGH

if TYPE_CHECKING:
    from benchmarks.contenders import Start

BATCHES = (1, 16, 64)
LARGEST_FOR_MONAI = 320
"""Its result has classes × height × width numbers, several times over: gigabytes for larger images."""


class EnoughError(Exception):
    """Raised out of a forward pass, to stop a tool."""


class Watched(nn.Module):
    """A model that notes when its passes start. The first `skip` passes are not counted, nor is one more when it is short
    (it warms up); `EnoughError` comes when the others were watched for long enough."""

    def __init__(self, model: nn.Module, skip: int = 1) -> None:
        super().__init__()
        self.model = model
        self.skip = skip
        self.starts: list[float] = []
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.note(len(x))
        _, seconds = self.watched()
        if seconds >= ENOUGH:
            raise EnoughError
        result: Tensor = self.model(x)
        return result

    def note(self, size: int) -> None:
        """A pass starts now, or (size 0) there are no more."""
        self.starts.append(time.perf_counter())
        self.sizes.append(size)

    def watched(self) -> tuple[int, float]:
        """Positions, and seconds from the start of the first counted pass to the start of the latest."""
        first = self.skip
        if len(self.starts) > first + 2 and self.starts[first + 1] - self.starts[first] < ENOUGH:
            first += 1
        if len(self.starts) < first + 2:
            return 0, 0.0
        return sum(self.sizes[first:-1]), self.starts[-1] - self.starts[first]


Explain = Callable[[nn.Module, int], object]
"""Runs a tool on a model in batches of so many positions."""


class Peer:
    """A tool at the best of its batch sizes."""

    charge = 0.0

    def __init__(self, model: nn.Module, explain: Explain, largest: int) -> None:
        self.model, self.explain = model, explain
        self.tried = {batch: self._milliseconds(batch) for batch in BATCHES if batch <= largest}
        self.batch = min(self.tried, key=self.tried.__getitem__)

    def _milliseconds(self, batch: int) -> float:
        watched = Watched(self.model)
        with contextlib.suppress(EnoughError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.explain(watched.eval(), batch)
            watched.note(0)
        positions, seconds = watched.watched()
        return seconds / positions * 1e3

    def round(self, turn: int) -> float:
        return self._milliseconds(self.batch)

    def facts(self) -> dict[str, Any]:
        return {"batch": self.batch, "by_batch_ms": self.tried}


def captum(start: Start) -> Peer | None:
    """Captum's `Occlusion`; its first pass is that of the unmodified image."""
    if not _installed("captum"):
        return None
    from captum.attr import Occlusion

    subject, target = start.subject, _predicted(start.subject)

    def explain(model: nn.Module, batch: int) -> Tensor:
        result: Tensor = Occlusion(model).attribute(
            subject.image[None],
            sliding_window_shapes=(3, *PATCH),
            strides=(3, *STRIDE),
            baselines=0.0,
            target=target,
            perturbations_per_eval=batch,
        )
        return result

    return Peer(subject.model, explain, _largest_batch(subject))


def monai(start: Start) -> Peer | None:
    """MONAI's `OcclusionSensitivity`; after its first pass it makes the buffers of its result."""
    subject = start.subject
    if subject.case.size > LARGEST_FOR_MONAI or not _installed("monai"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.visualize import OcclusionSensitivity

    def explain(model: nn.Module, batch: int) -> object:
        overlap = 1 - STRIDE[0] / PATCH[0]
        tool = OcclusionSensitivity(model, mask_size=PATCH[0], n_batch=batch, verbose=False, mode=0.0, overlap=overlap)
        return tool(subject.image[None])

    return Peer(subject.model, explain, _largest_batch(subject))


def _installed(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed and takes no part: pip install -e '.[bench]'", file=sys.stderr)
        return False
    return True


def _largest_batch(subject: Subject) -> int:
    return 64 if subject.case.size <= 320 else 16


def _predicted(subject: Subject) -> int:
    return int(subject.model(subject.image[None]).argmax())
