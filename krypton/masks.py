"""Masks: the sets of pixels that occlusions hide, when they are not the patches of a grid.

A mask is a boolean image of the model's size, True where it is occluded; n of them are one tensor (n, H, W).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krypton.errors import BindError, ImageError
from krypton.images import LoadedImage, nearest_file, open_picture
from krypton.settings import SETTINGS

MaskSource: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Tensor

# Masks are held in memory, one byte per cell.
MAX_CELLS = 1_000_000_000


def load_masks(source: MaskSource, height: int, width: int) -> Tensor:
    """Masks as a bool tensor (n, height, width), on the CPU.

    `source` is a bool or integer tensor or array, (n, H, W) or (H, W) for one mask, with at most one value besides 0;
    an `.npz` file with such an array named "masks", or a single one; or a `.png` label image of 8 or 16 bits, or with
    a palette, in which every value but 0 marks one mask, in ascending order. Masks are never resized. Raises
    ImageError when the source cannot be read, has another size, holds no mask, or a mask without a pixel.
    """
    if isinstance(source, Tensor):
        masks = _binary(source.detach().cpu().numpy(), "the masks")
    elif isinstance(source, np.ndarray):
        masks = _binary(source, "the masks")
    elif isinstance(source, (str, os.PathLike)):
        masks = _read(Path(source).expanduser(), height, width)
    else:
        raise ImageError(f"masks are a tensor, an array, or an .npz or .png file, not {type(source).__name__}")
    _check(masks, height, width)
    return torch.from_numpy(masks)


def superpixels(image: LoadedImage, n: int) -> Tensor:
    """About n connected regions of similar colour that cover the image, as masks: bool (k, H, W).

    SLIC (Achanta et al. 2012) as in scikit-image, deterministic; k differs from n a little, and is far smaller on
    images without smooth areas. Raises BindError unless 1 <= n <= H·W.
    """
    from skimage.segmentation import slic

    channels, height, width = image.input.shape
    _check_count(n, height, width)
    values = image.pixels if image.pixels is not None else _stretched(image.input)
    # Colours are compared in CIELAB, whose units are about a hundred times those of a plain channel in [0, 1].
    labels = slic(
        values.permute(1, 2, 0).double().numpy(),
        n_segments=n,
        compactness=10.0 if channels == 3 else 0.1,
        convert2lab=channels == 3,
        start_label=1,
        channel_axis=-1,
    )
    return torch.from_numpy(_split(labels))


def _check_count(n: int, height: int, width: int) -> None:
    if not 1 <= n <= height * width:
        raise BindError(f"SUPERPIXELS takes a number from 1 to {height * width:,}, not {n}")
    if n * height * width > MAX_CELLS:
        raise BindError(f"{n:,} masks of {height}x{width} need more than {MAX_CELLS:,} bytes: ask for fewer")


def _stretched(model_input: Tensor) -> Tensor:
    """A tensor image in [0, 1]: its pixels are unknown, and for segmentation any monotone scale will do."""
    low, high = model_input.min(), model_input.max()
    return (model_input - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)


def _split(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """A label image as one mask per value other than 0, ascending."""
    values = np.unique(labels)
    values = values[values != 0]
    if values.size * labels.size > MAX_CELLS:
        raise ImageError(
            f"{values.size:,} labels on {labels.shape[0]}x{labels.shape[1]} pixels need more than {MAX_CELLS:,} bytes; "
            "is this a label image?"
        )
    return np.asarray(labels == values[:, None, None])


def _binary(array: NDArray[Any], label: str) -> NDArray[np.bool_]:
    """An array (n, H, W) or (H, W) as bool (n, H, W)."""
    if array.dtype.kind not in "bui":
        raise ImageError(f"{label} must be bool or integers, not {array.dtype}")
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise ImageError(f"{label} must have shape (n, height, width) or (height, width), not {array.shape}")
    if array.dtype.kind != "b" and array.size and np.any((array != 0) & (array != array.max())):
        raise ImageError(
            f"{label} hold several values besides 0. Give one mask per label, or save a label image as a .png file"
        )
    return np.asarray(array != 0)


def _read(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    if not path.is_file():
        raise ImageError(f"masks file '{path}' does not exist.{nearest_file(path)}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return _read_npz(path)
    if suffix == ".png":
        return _read_png(path, height, width)
    raise ImageError(f"masks are read from .npz or .png files, not from '{path}'")


def _read_npz(path: Path) -> NDArray[np.bool_]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive.files)
            name = "masks" if "masks" in names else names[0] if len(names) == 1 else None
            array = archive[name] if name is not None else None
    except Exception as error:  # zip, header and data each fail in their own ways
        raise ImageError(f"masks file '{path}' cannot be read: {error}") from error
    if array is None:
        listing = ", ".join(sorted(names)) or "nothing"
        raise ImageError(f"masks file '{path}' must hold an array named \"masks\", or one array; it has {listing}")
    return _binary(array, f"the masks in '{path}'")


def _read_png(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    with open_picture(path, max_pixels=SETTINGS["max_image_pixels"].default) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
            raise ImageError(f"label image '{path}' has mode {picture.mode}; expected one channel of labels (gray or palette)")
        labels = np.asarray(picture)
    if labels.shape != (height, width):
        raise _wrong_size(labels.shape, height, width)
    return _split(labels)


def _check(masks: NDArray[np.bool_], height: int, width: int) -> None:
    if masks.shape[1:] != (height, width):
        raise _wrong_size(masks.shape[1:], height, width)
    if len(masks) == 0:
        raise ImageError("there are no masks: a label image marks them with values other than 0")
    if masks.size > MAX_CELLS:
        raise ImageError(f"{len(masks):,} masks of {height}x{width} need more than {MAX_CELLS:,} bytes: use fewer")
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if empty.size:
        listing = ", ".join(map(str, empty[:5])) + (" …" if empty.size > 5 else "")
        raise ImageError(f"masks without a single pixel (numbered from 0): {listing}. Leave them out")


def _wrong_size(shape: tuple[int, ...], height: int, width: int) -> ImageError:
    return ImageError(
        f"masks of {'x'.join(map(str, shape))} pixels do not fit the model's input of {height}x{width}; masks are not resized"
    )
