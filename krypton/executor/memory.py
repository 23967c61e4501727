"""Memory: blocks kept from one batch to the next, and what is done when there is not enough of it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator

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


# mallopt's parameters
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
# what glibc comes to by itself in a process that frees large blocks; its value for the number of mappings
_USUAL = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 * 2**20), (_TRIM_THRESHOLD, 64 * 2**20))


@contextlib.contextmanager
def kept_blocks() -> Iterator[None]:
    """Within this, glibc keeps large blocks for the next batch.

    By default it maps each from the system, gives it back when freed, and asks again: the system then zeroes every page of
    every delta, which takes longer than computing it. Nothing is done elsewhere than on glibc, or where the user tuned it.
    """
    tune = _mallopt()
    if tune is None:
        yield
        return
    tune(_MMAP_MAX, 0)
    tune(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        for parameter, value in _USUAL:
            tune(parameter, value)


def give_back() -> None:
    """Return to the system what is free."""
    if _mallopt() is not None:
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return None
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version
        found: Callable[[int, int], int] = library.mallopt
    except (OSError, AttributeError, TypeError):
        return None
    return found
