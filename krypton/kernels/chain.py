"""Chains of compiled convolutions, run a few occlusions at a time: what lies between them stays in the cache.

Convolutions whose runners get a `Chain` are noted in it instead of running; `run` then takes a few occlusions through all
of them, thread by thread. Values between them lie in *slots*, memory for those few occlusions that every thread has for itself.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from krypton.ir.delta import Delta
from krypton.kernels import native
from krypton.kernels.native import fitting

LINKS = {"convolution": 0, "winograd": 1, "depthwise": 2}
"""Numbers of compiled functions in cpp/chain.cpp."""

MOST_INTEGERS = native.ENDING_INTEGERS + 32  # as there
SLOTS = 768 * 1024
"""Bytes that two neighbouring slots of a thread take at most, so that they stay in a second cache of 1 MB."""


LEAST_TURNS = 4
"""Occlusions per thread from which on chains run as such: with fewer, threads would wait for each other."""


class Chain:
    """What is to run on a batch of occlusions. `slots` are the shapes (C, h, w) of the values between links, in order."""

    def __init__(self, batch: int, slots: Sequence[tuple[int, ...]]) -> None:
        self.batch = batch
        self.threads = torch.get_num_threads()
        floats = [math.prod(shape) for shape in slots]
        together = max((sum(floats[i : i + 2]) for i in range(len(floats))), default=1)
        shared = max(batch // (2 * self.threads), 1)  # every thread gets some, and they end together
        self.chunk = max(min(SLOTS // 4 // max(together, 1), shared), 1)
        self._floats: dict[int, int] = {}  # of one occlusion's slot, by address
        self._links: list[tuple[list[int], object]] = []

    def slot(self, channels: int, height: int, width: int) -> Tensor:
        """A tensor (batch, C, h, w), channels innermost, that stands for a slot: only links may write and read it."""
        room = torch.empty((self.threads * self.chunk, channels, height, width), memory_format=torch.channels_last)
        self._floats[room.data_ptr()] = channels * height * width
        return room[:1].expand(self.batch, -1, -1, -1)

    def add(
        self,
        function: str,
        arguments: ctypes.Array[ctypes.c_int64],
        parameters: ctypes.Array[ctypes.c_double],
        target: Delta,
        source: Delta,
    ) -> None:
        """Note a convolution that would have been called with these arguments."""
        fitting(len(arguments) <= MOST_INTEGERS and function in LINKS)
        numbers = [
            LINKS[function], ctypes.addressof(arguments), len(arguments), ctypes.addressof(parameters),
            self._floats.get(target.data.data_ptr(), 0), self._floats.get(source.data.data_ptr(), 0),
        ]  # fmt: skip
        self._links.append((numbers, (arguments, parameters, target, source)))

    def __len__(self) -> int:
        return len(self._links)

    def run(self) -> list[float]:
        """Run all that was noted; seconds of each link, all threads together."""
        seconds = (ctypes.c_double * len(self._links))()
        head = [len(self._links), self.batch, self.chunk, self.threads, ctypes.addressof(seconds)]
        native.loaded().krypton_chain(native.integers([*head, *(n for numbers, _ in self._links for n in numbers)]))
        return list(seconds)
