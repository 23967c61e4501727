"""Asking a model: in eval mode, where it lives; does it keep the examples of a batch apart, and does a graph agree with it?

Rounding is no reason to say no. Deep networks, untrained ones above all, may blow it up until float32 has few digits left;
so a batch of two is judged beside another batch of two, and a graph that float32 leaves in doubt by the model in float64.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from krypton.errors import CaptureError
from krypton.planner.quiet import quiet

TOLERANCE = 1e-3  # of what an image changes: a wrong graph is wrong by far more, sound arithmetic in another order by far less
FLOAT32_ERRORS = 10  # how many times the model's own error in float32 another order of the same arithmetic may be off
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}  # of the largest output: where images change next to nothing


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """The module in eval mode, without gradients; the training flags of all its parts are put back afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        with torch.no_grad():
            yield module
    finally:
        for part, training in flags:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Where the module lives, and wants its inputs: its first parameter's device, or buffer's; the CPU if it has neither."""
    return next((tensor.device for tensor in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu"))


def logits_of(output: object) -> Tensor:
    """What a model gave, when that is one tensor (B, K); CaptureError otherwise."""
    if not isinstance(output, Tensor) or output.dim() != 2:
        kind = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise CaptureError(f"a model must give one tensor (batch, outputs) for a batch of images, not {kind}: wrap it")
    return output


class Trial:
    """A model and a few images (B, C, H, W) that it is asked about, on its device; everything is run when it is needed."""

    def __init__(self, module: nn.Module, images: Tensor) -> None:
        self._module = module
        self._images = images

    @cached_property
    def singles(self) -> Tensor:
        """Logits (B, K), each image alone."""
        return torch.cat([self._run(image[None]) for image in self._images])

    @cached_property
    def together(self) -> Tensor:
        """Logits (B, K), all images in one batch."""
        return self._run(self._images)

    @cached_property
    def precise(self) -> Trial | None:
        """The same in float64; None for a model that cannot be copied or does not run like that."""
        try:
            doubled = copy.deepcopy(self._module)._apply(_doubled)  # type: ignore[no-untyped-call]
            trial = Trial(doubled, self._images.double())
            return trial if trial.singles.dtype == torch.float64 else None
        except Exception:  # whatever the model's own code raises
            return None

    def mixes(self) -> bool:
        """Whether the answer for an image depends on the other images of its batch."""
        if _distance(self.together, self.singles) <= self._tolerated:
            return False
        # in a batch of another size the same sums may be made in another order, but not beside another image
        beside_another = self._run(torch.cat([self._images[:1], -0.5 * self._images[1:]]))
        return not _distance(beside_another[:1], self.together[:1]) <= ROUNDING[self.together.dtype] * self._largest

    def agrees(self, logits: Tensor) -> bool:
        """Whether these logits (B, K), made in float32 in any order, are the model's own for each image alone."""
        if logits.shape != self.singles.shape:
            return False
        distance = _distance(logits, self.singles)
        if distance <= self._tolerated:
            return True
        if self.precise is None:
            return distance <= TOLERANCE * self._largest
        return distance <= self._tolerated + FLOAT32_ERRORS * _distance(self.singles, self.precise.singles)

    @property
    def _largest(self) -> float:
        return float(self.singles.abs().max())

    @property
    def _tolerated(self) -> float:
        """Not a part of the outputs themselves: biases may outweigh all that images change."""
        spread = float((self.singles.amax(0) - self.singles.amin(0)).max()) if len(self.singles) > 1 else self._largest
        return TOLERANCE * spread + ROUNDING[self.singles.dtype] * self._largest

    def _run(self, images: Tensor) -> Tensor:
        with evaluating(self._module), quiet():
            logits = logits_of(self._module(images))
        return logits if logits.dtype == torch.float64 else logits.float()


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _doubled(tensor: Tensor) -> Tensor:
    """Parts that the model itself has in other precisions stay in them."""
    return tensor.double() if tensor.dtype == torch.float32 else tensor
