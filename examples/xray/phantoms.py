"""Synthetic chest radiographs: normal lungs, or the same lungs with opacities that are diffuse or focal, their box known.

A radiograph is a projection: along each ray what the tissues attenuate adds up, and the film is lighter where less arrives.
So the picture is a sum of thicknesses: body, spine, heart and diaphragm, ribs and clavicles, vessels that branch from the hila,
less the air in the lungs. A focal opacity is matter of a blurred, irregular outline in one lung; a diffuse one is a haze with a
net of fine lines over both. Anatomy, exposure and noise depend on the seed alone, so `generate("normal", 7)` is the chest of
`generate("focal", 7)` without its opacity.

Drawn for demonstrations and tests, not measured from patients: nothing here is fit for diagnosis.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

KINDS = ("normal", "diffuse", "focal")
"""The three classes."""

Floats = NDArray[np.float64]

_SIDES = (-1, 1)
"""The patient's right lung, which is on the left of the picture, and the other."""

# Attenuation of a whole thickness, in nats: the body's, and what each part adds to it or, the lungs' air, takes away.
_BODY, _AIR, _SPINE, _HEART, _RIB, _CLAVICLE, _VESSEL = 2.0, 1.15, 0.42, 0.62, 0.15, 0.26, 0.34
_SHOWN = (0.35, 3.0)
"""Attenuations that the display shows black and white."""


@dataclass(frozen=True)
class Radiograph:
    """One picture. `image`: uint8 (size, size) grey values; `box`: (top, left, height, width) of all opacity, in pixels."""

    image: NDArray[np.uint8]
    label: str
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class _Chest:
    """What the seed alone decides. Maps are (size, size); `lungs` is (2, size, size), the share of a pixel that is lung."""

    lungs: Floats
    attenuation: Floats
    gain: float
    offset: float


def generate(kind: str, seed: int, size: int = 160) -> Radiograph:
    """Draw the radiograph of `kind` (one of KINDS) and `seed` (not negative), `size` pixels high and wide.

    A pure function of its arguments. Raises ValueError for another kind, or a size under 64 pixels.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    if size < 64:
        raise ValueError(f"a radiograph has at least 64 × 64 pixels, not {size} × {size}")
    chest = _draw_chest(np.random.default_rng([seed, 0]), size)
    rng = np.random.default_rng([seed, 1, KINDS.index(kind)])
    opacity, mask = {"normal": _nothing, "diffuse": _diffuse, "focal": _focal}[kind](rng, chest.lungs)
    image = _expose(np.random.default_rng([seed, 2]), chest, chest.attenuation + opacity)
    return Radiograph(image, kind, _box(mask))


# --- anatomy: coordinates are shares of the picture's size, x to the right from the middle, y downwards from the top --


def _grid(size: int) -> tuple[Floats, Floats]:
    y, x = np.mgrid[0:size, 0:size] / (size - 1.0)
    return x - 0.5, y


def _soft(distance: Floats, width: float) -> Floats:
    """1 well inside (negative distances), 0 outside, a smooth edge of that width between."""
    return np.asarray(1 / (1 + np.exp(np.clip(4 * distance / width, -50, 50))))


def _draw_chest(rng: np.random.Generator, size: int) -> _Chest:
    x, y = _grid(size)
    x = x - rng.uniform(-0.025, 0.025) - rng.uniform(-0.05, 0.05) * (y - 0.5)  # not quite in the middle, nor upright
    width, apex, base = rng.uniform(0.34, 0.40), rng.uniform(0.06, 0.13), rng.uniform(0.76, 0.88)
    heart = _heart(rng, x, y, base)
    lungs = np.stack([_lung(rng, side, x, y, width, apex, base) for side in _SIDES]) * (1 - 0.85 * heart)
    air = lungs.sum(0)
    neck = 0.3 + 1.3 * np.clip(y, 0, 0.3)  # beneath it the shoulders, then the chest wall
    body = _soft(np.abs(x) - np.minimum(neck, 0.47), 0.03)
    attenuation = _BODY * body * (1 + 0.12 * (y - 0.5)) - _AIR * air * _thickness(x, width)
    attenuation += _SPINE * _spine(x, y) + _HEART * heart + _bones(rng, x, y, width, apex)
    attenuation += _VESSEL * _vessels(rng, x, y, base) * air
    texture = gaussian_filter(rng.normal(0, 1, (size, size)), 0.02 * size, mode="reflect")
    attenuation += 0.03 * texture / texture.std()
    return _Chest(lungs, attenuation, rng.uniform(0.9, 1.1), rng.uniform(-0.08, 0.08))


def _lung(rng: np.random.Generator, side: int, x: Floats, y: Floats, width: float, apex: float, base: float) -> Floats:
    """A lung: narrow at the apex, cut off at the bottom by the dome of the diaphragm, higher on the right side."""
    down = np.clip((y - apex) / (base - apex), 0, 1)
    outer = width * (0.42 + 0.58 * np.sin(np.pi / 2 * np.clip(1.35 * down + 0.12, 0, 1))) * rng.uniform(0.97, 1.03)
    inner = 0.055 + 0.03 * down + 0.02 * np.sin(np.pi * down)
    across = side * x
    dome = base - 0.03 * (side < 0) - 0.10 * np.clip(1 - ((across - 0.45 * width) / (0.62 * width)) ** 2, -1.5, 1) + 0.06
    top = apex + 0.12 * ((across - 0.42 * width) / (0.42 * width)) ** 2
    return _soft(np.maximum.reduce([across - outer, inner - across, y - dome, top - y]), 0.022)


def _thickness(x: Floats, width: float) -> Floats:
    """A lung is thick in its middle and thin towards the chest wall."""
    return np.asarray(np.clip(1.1 - 0.55 * (np.abs(x) / width - 0.45) ** 2, 0.4, 1.1))


def _heart(rng: np.random.Generator, x: Floats, y: Floats, base: float) -> Floats:
    """Mostly on the patient's left; and the aortic arch above it."""
    size = rng.uniform(0.9, 1.12)
    right, down = x - 0.05, y - base + 0.12
    long, short = 0.8 * right + 0.6 * down, 0.8 * down - 0.6 * right  # its axis points to the patient's left hip
    muscle = np.sqrt((long / (0.19 * size)) ** 2 + (short / (0.145 * size)) ** 2)
    vessels = np.maximum(np.abs(x - 0.015) / 0.065, (base - 0.44 - y) / 0.05 + 0.7)  # the great ones above it, up to the arch
    return np.maximum(_soft(muscle - 1, 0.35), 0.45 * _soft(vessels - 1, 0.5) * (y < base))


def _spine(x: Floats, y: Floats) -> Floats:
    return _soft(np.abs(x) - 0.04, 0.03) * (1 + 0.12 * np.cos(2 * np.pi * y / 0.062))


def _bones(rng: np.random.Generator, x: Floats, y: Floats, width: float, apex: float) -> Floats:
    """Ribs: behind, they fall outwards from the spine; in front, fainter, they rise. Clavicles cross the apices."""
    bones = np.zeros_like(x)
    step, first = rng.uniform(0.074, 0.088), apex + rng.uniform(0.0, 0.03)
    behind, front = rng.uniform(0.10, 0.2), rng.uniform(0.35, 0.55)
    reach = 1.08 * width
    for side in _SIDES:
        across = side * x
        inside = _soft(0.03 - across, 0.02) * _soft(across - reach, 0.02)
        for number in range(10):
            spread = 0.5 + 0.06 * number
            middle = first + step * number + behind * across - 0.45 * spread * (across - 0.5 * reach) ** 2 / reach
            bones += _RIB * _band(y - middle, 0.017) * inside
            middle = first + 0.10 + 1.1 * step * number - front * (across - 0.35 * reach) * (across > 0.12)
            bones += 0.4 * _RIB * _band(y - middle, 0.02) * inside * _soft(0.13 - across, 0.03) * (number < 7)
        clavicle = apex + 0.075 - rng.uniform(0.2, 0.3) * across + 0.25 * across**2
        bones += _CLAVICLE * _band(y - clavicle, 0.018) * _soft(0.035 - across, 0.015)
    return bones


def _band(distance: Floats, half: float) -> Floats:
    """A tube seen from the side: dense at both edges, as the cortex of a bone is."""
    share = np.clip(np.abs(distance) / half, 0, 1.4)
    return np.asarray(np.where(share < 1, 0.75 + 0.45 * share**2, np.clip(1.2 - 3 * (share - 1), 0, 1.2)))


def _vessels(rng: np.random.Generator, x: Floats, y: Floats, base: float) -> Floats:
    """Vessels branch out of both hila and thin out; at the hila they are one bright mass."""
    size = len(x)
    drawn = np.zeros_like(x)
    for side in _SIDES:
        start = np.array([base - 0.33 - 0.015 * side, 0.5 + side * 0.085])
        for _ in range(26):
            place, angle, thick = start.copy(), rng.uniform(-1.35, 1.35), rng.uniform(0.5, 1.0)
            for _ in range(int(rng.uniform(14, 34))):
                angle += rng.normal(0, 0.11)
                place += 0.0095 * np.array([np.sin(angle), side * np.cos(angle)])
                row, column = (np.clip(place, 0, 1) * (size - 1)).astype(int)
                drawn[row, column] = max(drawn[row, column], thick)
                thick *= 0.945
        mass = ((x - side * 0.085) / 0.035) ** 2 + ((y - start[0]) / 0.06) ** 2
        drawn += 0.02 * np.exp(-mass)
    blurred = gaussian_filter(drawn, 0.0045 * size)
    return np.asarray(np.clip(blurred / 0.22, 0, 1.2))


# --- opacities: what they add to the attenuation (size, size), and where they are -------------------------------------


def _nothing(rng: np.random.Generator, lungs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    none = np.zeros(lungs.shape[1:])
    return none, none > 0


def _focal(rng: np.random.Generator, lungs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """A consolidation in one lung, of an irregular outline that fades into the lung."""
    size = lungs.shape[1]
    lung = lungs[rng.integers(2)]
    rows, columns = np.nonzero(gaussian_filter(lung, 0.02 * size) > 0.9)
    place = rng.integers(len(rows))
    x, y = np.arange(size) / size - columns[place] / size, (np.arange(size) / size)[:, None] - rows[place] / size
    high, wide, turn = rng.uniform(0.055, 0.105), rng.uniform(0.055, 0.095), rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    ragged = gaussian_filter(rng.normal(0, 1, (size, size)), 0.022 * size, mode="reflect")
    distance = np.sqrt((along / wide) ** 2 + (across / high) ** 2) + 0.28 * ragged / ragged.std()
    matter = gaussian_filter(_soft(distance - 1, 0.7), 0.008 * size) * lung
    return rng.uniform(0.55, 0.85) * matter, matter > 0.35


def _diffuse(rng: np.random.Generator, lungs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Haze and a net of fine lines over both lungs, denser here than there."""
    size = lungs.shape[1]
    cloud = gaussian_filter(rng.normal(0, 1, (size, size)), 0.07 * size, mode="reflect")
    density = np.clip(0.75 + 0.35 * cloud / cloud.std(), 0.15, 1.3)
    fine = gaussian_filter(rng.normal(0, 1, (2, size, size)), (0, 0.013 * size, 0.013 * size), mode="reflect")
    fine /= fine.std(axis=(1, 2), keepdims=True)
    net = np.exp(-((fine / 0.28) ** 2)).max(axis=0)  # where a smooth field is zero there are lines that cross
    matter = density * lungs.sum(0)
    strength = rng.uniform(0.75, 1.15)
    return strength * (0.22 * matter + 0.30 * matter * net), matter > 0.35


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """The smallest (top, left, height, width) in pixels that holds a mask (size, size), or None where it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)


# --- picture ----------------------------------------------------------------------------------------------------------


def _expose(rng: np.random.Generator, chest: _Chest, attenuation: Floats) -> NDArray[np.uint8]:
    """The display, uint8 (size, size): what arrives, with the noise of quanta and the detector's blur, in logarithms."""
    size = len(attenuation)
    arriving = gaussian_filter(np.exp(-attenuation), 0.0035 * size)
    noise = gaussian_filter(rng.normal(0, 1, (size, size)), 0.5)
    noisy = np.clip(arriving + 0.035 * np.sqrt(arriving * np.exp(-1.5)) * noise, 1e-3, None)
    low, high = _SHOWN
    shown = (-np.log(noisy) * chest.gain + chest.offset - low) / (high - low)
    return np.asarray(np.clip(np.rint(255 * shown), 0, 255), dtype=np.uint8)


def main() -> None:
    """Write one radiograph as an 8-bit greyscale PNG and print its label and box."""
    parser = argparse.ArgumentParser(description="Draw a synthetic chest radiograph.")
    parser.add_argument("--kind", choices=KINDS, default="focal")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=160, help="pixels, height and width")
    parser.add_argument("--out", type=Path, default=Path("radiograph.png"))
    arguments = parser.parse_args()
    picture = generate(arguments.kind, arguments.seed, arguments.size)
    Image.fromarray(picture.image).save(arguments.out)
    print(f"{arguments.out}: {picture.label}, box (top, left, height, width) {picture.box}")


if __name__ == "__main__":
    main()
