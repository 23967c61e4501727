"""Fills: what an occlusion puts in the place of the pixels it hides.

A fill is an image of the model's size, so a colour, the mean, a blur, noise or another picture are all the same to the
planner. Fills are made in pixel space and then normalised as the image was; see `images` for both.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from krypton.errors import BindError, ImageError, unknown
from krypton.images import LoadedImage, Preprocessing, hash_tensor, load_pixels
from krypton.settings import SETTINGS

FillSpec: TypeAlias = str | os.PathLike[str] | tuple[int, int, int] | float | Tensor | NDArray[Any] | Image.Image

_COLOURS = {"black": (0, 0, 0), "gray": (128, 128, 128), "white": (255, 255, 255)}
FILL_NAMES = ("black", "gray", "white", "mean", "blur", "noise")


@dataclass(frozen=True, eq=False)
class Fill:
    """`values` is float32 (C, H, W) in the model's input space; `content_hash` identifies them."""

    values: Tensor
    description: str
    content_hash: str


def make_fill(
    spec: FillSpec,
    image: LoadedImage,
    preprocessing: Preprocessing,
    *,
    seed: int,
    max_pixels: int = SETTINGS["max_image_pixels"].default,
) -> Fill:
    """The fill that `spec` describes, for this image and model.

    `spec` is one of `FILL_NAMES` in any case; an RGB tuple of whole numbers 0 to 255 (turned into luma for models of
    one channel); a picture (path, PIL image, uint8 or uint16 array H×W×C), resized to the model's size as images are;
    or a number, float tensor or float array that broadcasts to (C, H, W), of shape () or (C,) or (C, 1, 1) or
    (1, H, W) or (C, H, W).

    Gray is RGB 128; mean is the image's mean per channel; blur is the image under a Gaussian of sigma
    min(H, W) / 16 pixels; noise is uniform in [0, 1] per value, drawn from `seed`. Numbers and tensors live in the
    space in which the image was given: pixels in [0, 1] for a picture, the model's input for a tensor. Mean and blur
    of a tensor image are computed on that tensor. Raises BindError, or its subclass ImageError for pictures and values.
    """
    if isinstance(spec, str) and spec.lower() in FILL_NAMES:
        return _named_fill(spec.lower(), image, preprocessing, seed)
    if isinstance(spec, str) and not _is_path(spec):
        raise BindError(unknown("fill", spec, FILL_NAMES) + " Or name an image file, or give RGB(r, g, b).")
    if isinstance(spec, (tuple, list)):
        rgb = _check_rgb(spec)
        return _fill(preprocessing.apply(_colour(rgb, preprocessing)), f"RGB({', '.join(map(str, rgb))})")
    if isinstance(spec, (bool, np.bool_)):
        raise BindError(f"a fill cannot be {spec}: give a number, a colour's name, RGB(r, g, b), a picture or a tensor")
    if isinstance(spec, (int, float, np.number, Tensor)) or (isinstance(spec, np.ndarray) and spec.dtype.kind == "f"):
        values = _check_values(torch.as_tensor(spec), image, preprocessing)
        described = f"{spec:g}" if isinstance(spec, (int, float, np.number)) else "tensor"
        return _fill(values if image.pixels is None else preprocessing.apply(values), described)
    pixels = load_pixels(spec, preprocessing, max_pixels=max_pixels)
    described = f"'{os.fspath(spec)}'" if isinstance(spec, (str, os.PathLike)) else "picture"
    return _fill(preprocessing.apply(pixels), described)


def _fill(values: Tensor, description: str) -> Fill:
    return Fill(values, description, hash_tensor(values))


def _is_path(text: str) -> bool:
    """A fill's name is one word: whatever has a suffix or a folder, or exists, is meant as a file."""
    return "." in text or "/" in text or os.sep in text or os.path.exists(text)


def _named_fill(name: str, image: LoadedImage, preprocessing: Preprocessing, seed: int) -> Fill:
    if name in ("mean", "blur"):
        base = image.input if image.pixels is None else image.pixels
        changed = _mean(base) if name == "mean" else _blur(base)
        return _fill(changed if image.pixels is None else preprocessing.apply(changed), name)
    if name == "noise":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(preprocessing.shape, generator=generator)
        return _fill(preprocessing.apply(noise), f"noise (seed {seed})")
    # The three colours are gray, so models of any number of channels have them.
    level = torch.tensor(_COLOURS[name][0], dtype=torch.float32) / 255
    return _fill(preprocessing.apply(level.expand(preprocessing.shape)), name)


def _mean(base: Tensor) -> Tensor:
    return base.mean(dim=(1, 2), keepdim=True).expand_as(base).contiguous()


def _blur(base: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur  # slow to import, and rarely needed

    shorter = min(base.shape[1:])
    sigma = shorter / 16
    # Three sigmas; reflection at the border needs a radius below the image's size.
    radius = min(math.ceil(3 * sigma), shorter - 1)
    blurred: Tensor = gaussian_blur(base, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
    return blurred


def _check_rgb(spec: object) -> tuple[int, int, int]:
    values = tuple(spec) if isinstance(spec, (tuple, list)) else ()
    whole = all(isinstance(value, (int, np.integer)) and not isinstance(value, bool) for value in values)
    if len(values) != 3 or not whole or not all(0 <= value <= 255 for value in values):
        raise BindError(f"a fill's colour is RGB(r, g, b) with whole numbers from 0 to 255, not {spec}")
    return int(values[0]), int(values[1]), int(values[2])


def _colour(rgb: tuple[int, int, int], preprocessing: Preprocessing) -> Tensor:
    """The colour as pixels (C, H, W) in [0, 1]; through Pillow, so that luma is what files have."""
    if preprocessing.channels not in (1, 3):
        raise BindError(
            f"RGB{rgb} does not fit a model of {preprocessing.channels} channels: give a tensor with a value for each"
        )
    pixel = Image.new("RGB", (1, 1), rgb).convert("L" if preprocessing.channels == 1 else "RGB")
    levels = torch.from_numpy(np.asarray(pixel, dtype=np.float32).reshape(-1, 1, 1) / 255)
    return levels.expand(preprocessing.shape)


def _check_values(values: Tensor, image: LoadedImage, preprocessing: Preprocessing) -> Tensor:
    """A number or tensor as float32 (C, H, W), a copy, in the space the image was given in."""
    shape = preprocessing.shape
    if values.ndim > 0 and not values.is_floating_point():
        raise ImageError(f"a tensor fill must be floating point, not {values.dtype}; pictures are H×W×C uint8 arrays")
    values = values.detach().to(device="cpu", dtype=torch.float32, copy=True)
    per_channel = values.view(-1, 1, 1) if values.ndim == 1 else values
    try:
        full = per_channel.expand(shape).contiguous()
    except RuntimeError:
        raise ImageError(
            f"a fill of shape {tuple(values.shape)} does not broadcast to the model's input {shape}: "
            f"expected (), ({shape[0]},), ({shape[0]}, 1, 1), (1, {shape[1]}, {shape[2]}) or {shape}"
        ) from None
    if not bool(torch.isfinite(full).all()):
        raise ImageError("the fill contains NaN or infinite values")
    if image.pixels is not None and not (full.min() >= 0 and full.max() <= 1):
        raise ImageError(
            f"a number or tensor that fills a picture is in pixel space, from 0 to 1; this one goes from "
            f"{full.min():g} to {full.max():g}. Write RGB(r, g, b) for levels up to 255; to work on "
            "the model's input, give the image as a tensor, too"
        )
    return full
