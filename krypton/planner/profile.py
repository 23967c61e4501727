"""How fast a device is: rates of kernels measured on it by shape, and what a plan's other costs are made of.

A kernel's rate depends on the shape of the matrix product it comes down to, so a profile is a table of measurements, and a rate
asked for is found among those nearest (in octaves along each axis). CALIBRATE measures one, finished queries refine it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from krypton.errors import PlanError

_DEFAULT = Path(__file__).with_name("profile.json")
_NEIGHBOURS = 4
_STEPS = 8  # an octave
_LEARNED = 0.3  # weight of a new measurement against those before it
_SAME = 0.25  # octaves within which a shape counts as measured


class Shape(NamedTuple):
    """The matrix product of a convolution: what a number sums over, output channels, and output pixels of all occlusions."""

    depth: int
    columns: int
    rows: int


@dataclass(frozen=True)
class KernelRate:
    """A measurement: `per_ms` multiplications a millisecond (of those the kernel makes, see `Kernel.work`)."""

    kernel: str
    shape: Shape
    per_ms: float


def _rates(rows: Any) -> tuple[KernelRate, ...]:
    return tuple(KernelRate(str(k), Shape(int(d), int(c), int(r)), float(ms)) for k, d, c, r, ms in rows)


@cache
def _default_rates() -> tuple[KernelRate, ...]:
    return _rates(json.loads(_DEFAULT.read_text())["rates"])


@dataclass(frozen=True)
class DeviceProfile:
    """See the module. The numbers given here are those of two cores of a current server processor.

    `multiply_adds_per_ms` is for kernels and operators without measurements. `node_overhead_ms` is what starting an operator
    costs, `bytes_per_ms` how fast memory is read or written, `cache_bytes` how much of it is faster than that. `calibrated`
    is the day of the measurements, empty where none were made here.
    """

    multiply_adds_per_ms: float = 9.5e7
    bytes_per_ms: float = 1.2e7
    node_overhead_ms: float = 0.04
    cache_bytes: float = 16e6
    rates: tuple[KernelRate, ...] = field(default_factory=_default_rates, repr=False)
    device: str = "an ordinary processor"
    calibrated: str = ""

    @property
    def origin(self) -> str:
        """Where the numbers come from, in a few words."""
        return f"CALIBRATE of {self.calibrated}" if self.calibrated else "default profile"

    def rate(self, kernel: str, shape: Shape) -> float:
        """Multiplications per millisecond, from the nearest measurements of this kernel.

        Rows go in steps of an eighth of an octave: planning asks for hundreds of numbers that hardly differ.
        """
        shape = shape._replace(rows=round(2 ** (round(math.log2(max(shape.rows, 1)) * _STEPS) / _STEPS)))
        known = self._found.get((kernel, shape))
        if known is None:
            known = _rate(*self._by_kernel[kernel], shape) if kernel in self._by_kernel else self.multiply_adds_per_ms
            self._found[kernel, shape] = known
        return known

    def measured(self, kernel: str) -> bool:
        return kernel in self._by_kernel

    @cached_property
    def _by_kernel(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each kernel the logarithms of its shapes (n, 3), in octaves, and of its rates (n,)."""
        found: dict[str, list[KernelRate]] = {}
        for rate in self.rates:
            found.setdefault(rate.kernel, []).append(rate)
        return {
            kernel: (np.log2([[max(x, 1) for x in rate.shape] for rate in rates]), np.log([rate.per_ms for rate in rates]))
            for kernel, rates in found.items()
        }

    @cached_property
    def _found(self) -> dict[tuple[str, Shape], float]:
        """Rates asked for before: planning asks for the same ones thousands of times."""
        return {}

    def learn(self, found: Iterable[KernelRate]) -> DeviceProfile:
        """The profile with these measurements; one of a shape that is known counts a little, one that is new counts in full."""
        rates = list(self.rates)
        for new in found:
            near = [i for i, old in enumerate(rates) if old.kernel == new.kernel and _distance(old.shape, new.shape) < _SAME]
            if near:
                place = min(near, key=lambda i: _distance(rates[i].shape, new.shape))
                blended = rates[place].per_ms ** (1 - _LEARNED) * new.per_ms**_LEARNED
                rates[place] = replace(rates[place], per_ms=blended)
            else:
                rates.append(new)
        return replace(self, rates=tuple(rates))

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"rates": [[r.kernel, *r.shape, round(r.per_ms)] for r in self.rates]})

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """Raises PlanError when the text is not a profile."""
        try:
            return _from_dict(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise PlanError(f"this is no device profile: {error}; make one with CALIBRATE") from None


def _from_dict(data: Mapping[str, Any]) -> DeviceProfile:
    rates = _rates(data["rates"])
    numbers = {name: float(data[name]) for name in ("multiply_adds_per_ms", "bytes_per_ms", "node_overhead_ms", "cache_bytes")}
    if not all(math.isfinite(x) and x > 0 for x in (*numbers.values(), *(rate.per_ms for rate in rates))):
        raise ValueError("rates must be positive")
    calibrated = str(data.get("calibrated", "an unknown day"))  # profiles did not always say it
    return DeviceProfile(**numbers, rates=rates, device=str(data["device"]), calibrated=calibrated)


def _rate(shapes: NDArray[np.float64], rates: NDArray[np.float64], shape: Shape) -> float:
    """The mean rate of the nearest measurements, the nearer the heavier."""
    distances = np.sqrt(((shapes - np.log2([max(x, 1) for x in shape])) ** 2).sum(1))
    nearest = np.argsort(distances)[:_NEIGHBOURS]
    weights = 1 / (distances[nearest] + 0.05) ** 2
    return float(np.exp((weights * rates[nearest]).sum() / weights.sum()))


def _distance(a: Shape, b: Shape) -> float:
    """Octaves between two shapes."""
    return math.dist([math.log2(max(x, 1)) for x in a], [math.log2(max(x, 1)) for x in b])
