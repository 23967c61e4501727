"""Out of memory: how it is recognised on any device, and what is said when nothing smaller is left to try."""

from __future__ import annotations

import torch

from krypton.errors import ExecutionError


def out_of_memory(error: BaseException) -> bool:
    """Is this exception the allocator's? PyTorch has a type of its own only for GPUs."""
    text = str(error).lower()
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text or "out of memory" in text
    )


def half_of(batch: int, error: BaseException) -> int:
    """The batch to go on with after this exception; raises it again when it is another one.

    ExecutionError when the batch is one occlusion already.
    """
    if not out_of_memory(error):
        raise error
    if batch == 1:
        raise ExecutionError(
            "not enough memory for a single occlusion; use a smaller input size, or free memory on the device"
        ) from None
    return batch // 2
