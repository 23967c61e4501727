"""Synthetic OCT-like retina scans: a normal eye, or the same eye with one lesion whose box is known.

A scan is drawn as an optical coherence tomograph would show it (a B-scan: depth downwards, brightness in dB). Smooth
curves bound the retinal layers around a foveal pit; a lesion bends the curves or adds matter; vessels and dense matter
cast shadows; speckle multiplies the intensity before the logarithm is taken. The anatomy, the shadows and the speckle
depend on the seed alone, so `generate("normal", 7)` is the eye of `generate("fluid", 7)` without its lesion.

Drawn for demonstrations and tests, not measured from patients: nothing here is fit for diagnosis.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

KINDS = ("normal", "drusen", "fluid", "exudate")
"""The four classes, in the order of the model's outputs."""

Floats = NDArray[np.float64]

# Layers from the vitreous down to Bruch's membrane: name, thickness as a share of the retina's, thickness at the centre
# of the pit as a share of the layer's, brightness (0 black, 1 white), how much of a lift of the RPE reaches its top.
_LAYERS = (
    ("RNFL", 0.11, 0.10, 0.74, 0.15),
    ("GCL+IPL", 0.25, 0.25, 0.53, 0.17),
    ("INL", 0.12, 0.25, 0.36, 0.25),
    ("OPL", 0.08, 0.55, 0.55, 0.35),
    ("ONL", 0.21, 1.35, 0.30, 0.45),
    ("ELM", 0.020, 1.0, 0.42, 0.95),
    ("IS", 0.035, 1.0, 0.33, 0.97),
    ("EZ", 0.045, 1.0, 0.80, 1.0),
    ("OS", 0.045, 1.0, 0.46, 1.0),
    ("RPE", 0.075, 1.0, 0.90, 1.0),
)
_SHARES, _AT_PIT, _BRIGHTNESS, _LIFTED = (np.array([layer[i] for layer in _LAYERS]) for i in (1, 2, 3, 4))
_INL, _OPL, _ONL, _RPE = 2, 3, 4, 9
_VITREOUS, _CHOROID, _DRUSE, _FLUID = 0.03, 0.55, 0.52, 0.06
_NATS = 5.5
"""Range of the display: natural logarithm of the intensity of white over that of black."""


@dataclass(frozen=True)
class Scan:
    """One scan. `image`: uint8 (size, size) grey values; `box`: (top, left, height, width) of the lesion in pixels."""

    image: NDArray[np.uint8]
    label: str
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class _Eye:
    """What the seed alone decides, in pixels: `tops` (10, size) of the layers and `bruch` (size,), the lowest bound."""

    tops: Floats
    bruch: Floats
    pit: float
    choroid: float
    dots: Floats  # (3, n): row, column and brightness of bright dots too small to be a lesion
    shadows: Floats  # (2, size): row from which each column is dimmed, and by how much of the display's range
    gain: float
    floor: float


def generate(kind: str, seed: int, size: int = 160) -> Scan:
    """Draw the scan of `kind` (one of KINDS) and `seed` (not negative), `size` pixels high and wide.

    A pure function of its arguments. Raises ValueError for another kind, or a size under 64 pixels.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    if size < 64:
        raise ValueError(f"a scan has at least 64 × 64 pixels, not {size} × {size}")
    eye = _draw_eye(np.random.default_rng([seed, 0]), size)
    rng = np.random.default_rng([seed, 1, KINDS.index(kind)])
    lesion = {"normal": _no_lesion, "drusen": _drusen, "fluid": _fluid, "exudate": _exudate}[kind](rng, eye, size)
    bright = _render(np.random.default_rng([seed, 2]), eye, lesion, size)
    return Scan(_speckle(np.random.default_rng([seed, 3]), bright, eye), kind, _box(lesion.mask))


# --- anatomy ----------------------------------------------------------------------------------------------------------


def _wave(rng: np.random.Generator, size: int, waves: float) -> Floats:
    """A smooth random curve (size,) of about unit amplitude with up to `waves` periods across the scan."""
    x = np.linspace(0, 2 * np.pi, size)
    frequency, phase, weight = rng.uniform(0.3, waves, 4), rng.uniform(0, 2 * np.pi, 4), rng.normal(0, 0.7, 4)
    return np.asarray(weight @ np.sin(frequency[:, None] * x + phase[:, None]))


def _draw_eye(rng: np.random.Generator, size: int) -> _Eye:
    x = np.linspace(-1, 1, size)
    pit = rng.uniform(-0.5, 0.5)
    bruch = size * (
        rng.uniform(0.60, 0.70) + rng.uniform(-0.07, 0.07) * x + rng.uniform(-0.05, 0.02) * (x - pit) ** 2
    ) + 0.6 * _wave(rng, size, 1.5)
    width = rng.uniform(0.16, 0.30)
    foveal = rng.uniform(0.55, 1.0) * (rng.random() < 0.8)
    hollow = foveal * np.exp(-(((x - pit) / width) ** 2))
    rim = 1 + 0.12 * np.exp(-(((np.abs(x - pit) - 2 * width) / (1.5 * width)) ** 2))
    thickness = size * rng.uniform(0.29, 0.37) * _SHARES[:, None] * (1 + (_AT_PIT[:, None] - 1) * hollow)
    thickness[:4] *= rim
    thickness[0] *= np.clip(1 + rng.choice((-1, 1)) * rng.uniform(0.2, 0.8) * x, 0.25, None)
    for layer in thickness:
        layer *= np.clip(1 + 0.06 * _wave(rng, size, 3), 0.6, 1.4)
    tops = bruch - np.cumsum(thickness[::-1], axis=0)[::-1]
    return _Eye(
        tops=tops,
        bruch=bruch,
        pit=pit,
        choroid=size * rng.uniform(0.12, 0.24),
        shadows=_vessel_shadows(rng, tops, size),
        dots=_dots(rng, tops, size),
        gain=rng.uniform(0.84, 1.06),
        floor=rng.uniform(0.02, 0.10),
    )


def _vessel_shadows(rng: np.random.Generator, tops: Floats, size: int) -> Floats:
    """Shadows (2, size) under zero to four retinal vessels: first dimmed row, share of the range lost."""
    x = np.arange(size)
    dim = np.zeros(size)
    for _ in range(rng.integers(0, 5)):
        centre, radius, depth = rng.uniform(0, size), size * rng.uniform(0.006, 0.022), rng.uniform(0.05, 0.24)
        dim = np.maximum(dim, depth * np.exp(-(((x - centre) / radius) ** 4)))
    return np.stack((tops[1] + 0.05 * size, dim))


def _dots(rng: np.random.Generator, tops: Floats, size: int) -> Floats:
    """Up to five hyper-reflective dots (3, n) in the inner retina, about a pixel wide: row, column, brightness."""
    columns = rng.integers(0, size, rng.integers(0, 6))
    share = rng.uniform(0.1, 0.9, len(columns))
    rows = tops[1, columns] * (1 - share) + tops[_ONL + 1, columns] * share
    return np.stack((rows, columns, rng.uniform(0.2, 0.45, len(columns))))


# --- lesions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesion:
    """What a lesion changes in a scan `size` pixels wide; `_no_lesion` is all zeros."""

    lifts: Floats  # (10, size): pixels by which the top of each layer is raised
    pocket: Floats  # (size,): height in pixels of fluid between RPE and photoreceptors
    matter: Floats  # (size, size): share of the pixel that is lesion matter
    brightness: float  # of the matter
    shadow: Floats  # (size,): share of the display's range lost under the matter
    mask: NDArray[np.bool_]  # (size, size): what the box bounds


def _no_lesion(rng: np.random.Generator, eye: _Eye, size: int) -> _Lesion:
    zero = np.zeros(size)
    nothing = np.zeros((size, size))
    return _Lesion(np.zeros_like(eye.tops), zero, nothing, 0.0, zero, nothing > 0)


def _bump(x: Floats, centre: float, half_width: float, sharpness: float = 2.0) -> Floats:
    """A dome of height 1 around `centre` (pixels), zero beyond `half_width`; flatter on top as `sharpness` grows."""
    return np.asarray((1 - np.clip(np.abs(x - centre) / half_width, 0, 1) ** sharpness) ** 2)


def _drusen(rng: np.random.Generator, eye: _Eye, size: int) -> _Lesion:
    """One or two domes of deposit between Bruch's membrane and the RPE, which they lift."""
    x, rows = np.arange(size, dtype=float), np.arange(size, dtype=float)[:, None]
    centre, lift = size * rng.uniform(0.16, 0.84), np.zeros(size)
    for _ in range(1 + (rng.random() < 0.35)):
        half = size * rng.uniform(0.05, 0.085)
        lift = np.maximum(lift, size * rng.uniform(0.018, 0.07) * _bump(x, centre, half, rng.uniform(2, 3)))
        centre += rng.choice((-1, 1)) * size * rng.uniform(0.08, 0.12)
    lift = gaussian_filter(lift, 0.008 * size)
    mask = (rows >= eye.tops[_RPE] - lift) & (rows <= eye.bruch) & (lift > 0.006 * size)
    return replace(_no_lesion(rng, eye, size), lifts=_LIFTED[:, None] * lift, mask=mask)


def _fluid(rng: np.random.Generator, eye: _Eye, size: int) -> _Lesion:
    """Fluid, which is dark: a pocket that detaches the retina from the RPE, or one or two cysts within the retina."""
    draw = _pocket if rng.random() < 0.5 else _cysts
    return draw(rng, eye, size)


def _pocket(rng: np.random.Generator, eye: _Eye, size: int) -> _Lesion:
    x, rows = np.arange(size, dtype=float), np.arange(size, dtype=float)[:, None]
    height = size * rng.uniform(0.02, 0.08) * _bump(x, size * rng.uniform(0.16, 0.84), size * rng.uniform(0.065, 0.12))
    lifts = _LIFTED[:, None] * height
    lifts[_RPE] = 0
    top = eye.tops[_RPE]
    mask = (rows >= top - height) & (rows <= top) & (height > 0.006 * size)
    return replace(_no_lesion(rng, eye, size), lifts=lifts, pocket=height, mask=mask)


def _cysts(rng: np.random.Generator, eye: _Eye, size: int) -> _Lesion:
    x, rows = np.arange(size, dtype=float), np.arange(size, dtype=float)[:, None]
    centre = size * rng.uniform(0.16, 0.84)
    lifts, matter = np.zeros_like(eye.tops), np.zeros((size, size))
    for _ in range(1 + (rng.random() < 0.35)):
        column = int(np.clip(centre, 0, size - 1))
        half_width, half_height = size * rng.uniform(0.04, 0.075), size * rng.uniform(0.022, 0.05)
        layer = rng.choice((_INL, _ONL))
        middle = eye.tops[layer, column] + size * rng.uniform(0.0, 0.02)
        slope = np.gradient(eye.bruch)[column]
        distance = ((x - centre) / half_width) ** 2 + ((rows - middle - slope * (x - centre)) / half_height) ** 2
        matter = np.maximum(matter, np.clip((1.15 - distance) / 0.3, 0, 1))
        lifts[: layer + 1] += 0.6 * half_height * _bump(x, centre, 2.2 * half_width)
        centre += rng.choice((-1, 1)) * half_width * rng.uniform(1.3, 1.8)
    return replace(
        _no_lesion(rng, eye, size), lifts=lifts, matter=matter, brightness=rng.uniform(_FLUID, 0.22), mask=matter > 0.3
    )


def _exudate(rng: np.random.Generator, eye: _Eye, size: int) -> _Lesion:
    """A cluster of hard exudates around the outer plexiform layer: bright, and they shade what is beneath."""
    x, rows = np.arange(size, dtype=float), np.arange(size, dtype=float)[:, None]
    centre, depth = size * rng.uniform(0.16, 0.84), rng.uniform(0, 0.025)
    matter = np.zeros((size, size))
    for _ in range(rng.integers(2, 6)):
        column = centre + size * rng.normal(0, 0.026)
        middle = eye.tops[_OPL, int(np.clip(column, 0, size - 1))] + size * rng.normal(depth, 0.014)
        half_width, half_height = size * rng.uniform(0.02, 0.045), size * rng.uniform(0.014, 0.026)
        distance = ((x - column) / half_width) ** 2 + ((rows - middle) / half_height) ** 2
        matter = np.maximum(matter, np.clip(1.4 - distance, 0, 1))
    matter = gaussian_filter(matter, 0.004 * size)
    return replace(
        _no_lesion(rng, eye, size),
        matter=matter,
        brightness=rng.uniform(0.64, 0.95),
        shadow=rng.uniform(0.08, 0.26) * gaussian_filter(matter.max(axis=0), 0.008 * size),
        mask=matter > 0.3,
    )


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The smallest (top, left, height, width) in pixels that holds a mask (size, size), or None where it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


# --- picture ----------------------------------------------------------------------------------------------------------


def _render(rng: np.random.Generator, eye: _Eye, lesion: _Lesion, size: int) -> Floats:
    """Brightness (size, size) in 0 … 1 before speckle: layers from the top down, choroid, lesion matter, shadows."""
    rows = np.arange(size, dtype=float)[:, None]
    texture = gaussian_filter(rng.normal(0, 1, (2, size, size)), (0, 0.014 * size, 0.024 * size), mode="reflect")
    texture /= texture.std(axis=(1, 2), keepdims=True)

    tops = eye.tops - lesion.lifts
    bands = list(zip(tops, _BRIGHTNESS, strict=True))
    if lesion.pocket.any():
        bands.insert(_RPE, (tops[_RPE] - lesion.pocket, _FLUID))
    bands.append((eye.bruch - lesion.lifts[_RPE], _DRUSE))

    image = np.full((size, size), _VITREOUS)
    edge = 0.009 * size
    below = _VITREOUS
    for top, brightness in bands:
        image += (brightness - below) * np.clip((rows - top) / edge + 0.5, 0, 1)
        below = brightness
    image += 0.025 * texture[0] * (rows > tops[0])
    for row, column, brightness in eye.dots.T:
        distance = (rows - row) ** 2 + (np.arange(size) - column) ** 2
        image += brightness * np.exp(-distance / (2 * (0.006 * size) ** 2))

    depth = (rows - eye.bruch) / eye.choroid
    lumens = 0.26 * np.clip(texture[1] - 0.2, 0, 1) * np.clip(4 * depth - 0.3, 0, 1) * np.clip(6 - 5 * depth, 0, 1)
    sclera = 0.05 * np.exp(-(((depth - 1.15) / 0.12) ** 2))
    choroid = (_CHOROID + sclera - lumens - 0.1 * np.clip(depth, 0, 1)) * np.exp(-0.6 * np.clip(depth - 1.2, 0, None))
    share = np.clip((rows - eye.bruch) / edge + 0.5, 0, 1)
    image = image * (1 - share) + choroid * share

    image = image * (1 - lesion.matter) + (lesion.brightness + 0.02 * texture[1]) * lesion.matter
    start, dim = eye.shadows
    image -= dim * np.clip((rows - start) / (3 * edge), 0, 1)
    beneath = np.cumsum(lesion.matter, axis=0) / np.maximum(lesion.matter.sum(axis=0), 1e-9)
    image -= lesion.shadow * np.where(lesion.matter > 0.3, 0, np.clip(4 * beneath - 3, 0, 1))

    x, y = np.linspace(-1, 1, size), np.linspace(-1, 1, size)[:, None]
    vignette = 1 - 0.10 * (x - 0.4 * eye.pit) ** 2 - 0.04 * y**2
    return np.asarray(np.clip(image, 0.01, 1) * vignette * eye.gain)


def _speckle(rng: np.random.Generator, bright: Floats, eye: _Eye) -> NDArray[np.uint8]:
    """The display, uint8 (size, size): intensity under multiplicative speckle, plus a noise floor, in dB.

    Speckle is the mean power of three complex Gaussian fields, blurred by the spot that the beam makes.
    """
    size = len(bright)
    waves = gaussian_filter(rng.normal(0, 1, (6, size, size)), (0, 0.0034 * size, 0.0055 * size), mode="wrap")
    power = (waves**2).mean(axis=0)
    power /= power.mean()
    noise = rng.exponential(1.0, (size, size))
    shown = np.log(np.exp(_NATS * bright) * power + np.exp(_NATS * eye.floor) * noise) / _NATS
    return np.asarray(np.clip(np.rint(255 * shown), 0, 255), dtype=np.uint8)


def main() -> None:
    """Write one scan as an 8-bit greyscale PNG and print its label and box."""
    parser = argparse.ArgumentParser(description="Draw a synthetic retina scan.")
    parser.add_argument("--kind", choices=KINDS, default="fluid")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=160, help="pixels, height and width")
    parser.add_argument("--out", type=Path, default=Path("scan.png"))
    arguments = parser.parse_args()
    scan = generate(arguments.kind, arguments.seed, arguments.size)
    Image.fromarray(scan.image).save(arguments.out)
    print(f"{arguments.out}: {scan.label}, box (top, left, height, width) {scan.box}")


if __name__ == "__main__":
    main()
