"""The oracle: the model itself on every occluded image, in batches. Nothing clever, on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from krypton.errors import ExecutionError
from krypton.executor.memory import half_of
from krypton.executor.occluder import Occluder
from krypton.ir.occlusions import OcclusionTile
from krypton.planner.trials import evaluating


def naive_logits(module: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, K) float32 of a model on images (B, C, H, W), in eval mode and without gradients."""
    with evaluating(module):
        output = module(images)
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise ExecutionError("a model must give one tensor (batch, outputs) for a batch of images: wrap it")
    return output.float()


def naive_batches(
    module: nn.Module,
    occluder: Occluder,
    batch: int,
    tiles: Iterable[OcclusionTile],
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """(places, logits, seconds) of the occlusions in some tiles, tile after tile. Smaller batches when memory runs out."""
    for tile in tiles:
        start = 0
        while start < len(tile.indices):
            if cancelled and cancelled():
                return
            indices, started = tile.indices[start : start + batch], time.perf_counter()
            try:
                logits = naive_logits(module, occluder.images(indices)).cpu()
            except (MemoryError, RuntimeError) as error:
                batch = half_of(len(indices), error)
                continue
            yield torch.tensor(indices), logits, time.perf_counter() - started
            start += len(indices)
