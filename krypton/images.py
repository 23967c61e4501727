"""Reading images: whatever a user hands over becomes the float32 tensor that the model receives.

Pictures (files, PIL images, integer arrays) live in *pixel space*, [0, 1] per channel, are resized as a whole to the
model's size, so that a heat map covers the whole image, and are normalised by the model's `Preprocessing`. Float
tensors are taken as the model's input as they are. What replaces pixels is in `fills`, which pixels in `masks`.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from krypton.errors import BindError, ImageError, did_you_mean

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any] | Tensor

# ITU-R 601, the weights Pillow uses for 8 bits; needed here for pictures deeper than Pillow converts.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Preprocessing:
    """What a model expects: its input shape, and the mean and standard deviation per channel in pixel space [0, 1]."""

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if min(self.channels, self.height, self.width) < 1:
            raise BindError(f"a model's input of {self.channels}x{self.height}x{self.width} is empty")
        for name, values in (("MEAN", self.mean), ("STD", self.std)):
            if len(values) != self.channels:
                raise BindError(f"{name} has {len(values)} values, but the model's input has {self.channels} channels")
        if not all(value > 0 for value in self.std):
            raise BindError(f"STD must be positive, not {self.std}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the model's input."""
        return self.channels, self.height, self.width

    def apply(self, pixels: Tensor) -> Tensor:
        """The model's input, float32 (C, H, W), from pixels, float32 (C, H, W) in [0, 1]; sizes of 1 broadcast."""
        mean = torch.tensor(self.mean, dtype=torch.float32).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32).view(-1, 1, 1)
        return (pixels - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing that `to_json` described."""
        return cls(data["channels"], data["height"], data["width"], tuple(data["mean"]), tuple(data["std"]))


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image ready for the model.

    `pixels` is float32 (C, H, W) in [0, 1], or None when a tensor was given as the model's input; `input` is float32
    (C, H, W), what the model receives; `name` is the path as given, or "image"; `content_hash` identifies `input`.
    """

    pixels: Tensor | None
    input: Tensor
    name: str
    content_hash: str


def load_image(source: ImageSource, preprocessing: Preprocessing, *, max_pixels: int) -> LoadedImage:
    """The image that the model receives.

    `source` is a picture: a path, the bytes of a file, a PIL image, or an array (H, W) or (H, W, C) of uint8 or uint16;
    or the model's input: a float tensor or array (C, H, W) or (1, C, H, W). Pictures are turned upright as their EXIF
    orientation says, converted to the model's 1 or 3 channels (alpha is dropped) and resized as a whole, without
    cropping, to the model's size (bilinear, antialiased). Raises ImageError for everything that cannot be read or does
    not fit, and for pictures of more than `max_pixels` pixels, which are refused before they are decoded.
    """
    if isinstance(source, Tensor) or (isinstance(source, np.ndarray) and source.dtype.kind == "f"):
        model_input = _check_input(torch.as_tensor(source), preprocessing)
        return LoadedImage(None, model_input, "image", hash_tensor(model_input))
    pixels = load_pixels(source, preprocessing, max_pixels=max_pixels)
    model_input = preprocessing.apply(pixels)
    name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else "image"
    return LoadedImage(pixels, model_input, name, hash_tensor(model_input))


def load_pixels(source: ImageSource, preprocessing: Preprocessing, *, max_pixels: int) -> Tensor:
    """A picture as float32 (C, H, W) in [0, 1], of the model's channels and size; raises ImageError."""
    if preprocessing.channels not in (1, 3):
        raise ImageError(
            f"the model takes {preprocessing.channels} channels, a picture has 1 or 3: "
            f"give the model's input as a float tensor of shape {preprocessing.shape}"
        )
    if isinstance(source, np.ndarray):
        array = _check_picture_array(source, max_pixels)
        # Eight bits go Pillow's way, as files do; it has no mode for colours of 16 bits.
        if array.dtype == np.uint16:
            return _resize_planes(array.astype(np.float32) / 65535, preprocessing)
        picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        return _picture_pixels(picture, preprocessing, _label(source))
    with open_picture(source, max_pixels=max_pixels) as picture:
        return _picture_pixels(ImageOps.exif_transpose(picture), preprocessing, _label(source))


@contextmanager
def open_picture(source: ImageSource, *, max_pixels: int) -> Iterator[Image.Image]:
    """A decoded PIL image from a path, bytes or PIL image, for use in a `with`; raises ImageError, also for the body.

    Whatever Pillow's decoders and conversions raise or warn about within the `with` is reported as an ImageError that
    names the file: broken files make them fail in many ways.
    """
    label = _label(source)
    try:
        with warnings.catch_warnings():
            # About corrupt metadata, palettes and sizes; sizes are judged by `max_pixels`.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                _check_size(source.size, label, max_pixels)
                yield source
            elif isinstance(source, (str, os.PathLike, bytes)):
                file = io.BytesIO(source) if isinstance(source, bytes) else _existing_file(source)
                with Image.open(file) as picture:
                    _check_size(picture.size, label, max_pixels)
                    picture.load()
                    yield picture
            else:
                raise ImageError(
                    f"{type(source).__name__} is not an image: expected a path, a PIL image, "
                    "an H×W×C uint8 array or a float tensor (C, H, W)"
                )
    except (BindError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{label} is not an image that can be read (PNG, JPEG, TIFF, WebP, BMP, GIF …)") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{label} has more pixels than may be decoded; make it smaller first") from None
    except Exception as error:
        raise ImageError(f"{label} cannot be decoded, it may be truncated or damaged: {error}") from error


def hash_tensor(tensor: Tensor) -> str:
    """A SHA-256 over dtype, shape and values: equal tensors, and only they, have equal hashes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def nearest_file(path: Path) -> str:
    """`' Did you mean "cat.jpg"?'` for the file in the same folder (the first thousand) most like a missing one."""
    if not path.parent.is_dir():
        return f" There is no folder '{path.parent}'."
    return did_you_mean(path.name, (entry.name for entry in islice(path.parent.iterdir(), 1000)))


def _label(source: object) -> str:
    return f"image '{os.fspath(source)}'" if isinstance(source, (str, os.PathLike)) else "the image"


def _existing_file(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        raise ImageError(f"image '{path}' is a folder: name one file in it")
    if not path.exists():
        raise ImageError(f"image '{path}' does not exist.{nearest_file(path)}")
    return path


def _check_size(size: tuple[int, int], label: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{label} has {height}x{width} pixels, more than {max_pixels:,}: "
            "make it smaller, or raise the setting krypton.max_image_pixels"
        )
    if width * height == 0:
        raise ImageError(f"{label} is empty ({height}x{width} pixels)")


def _check_input(tensor: Tensor, preprocessing: Preprocessing) -> Tensor:
    """A copy, for the caller may go on changing theirs while a lazy query waits."""
    shape = preprocessing.shape
    if not tensor.is_floating_point():
        raise ImageError(
            f"a tensor image is the model's input and must be floating point, not {tensor.dtype}; "
            "give a picture as an H×W×C uint8 NumPy array"
        )
    found = tuple(tensor.shape)
    if tensor.ndim == 4 and found[0] == 1:
        tensor = tensor[0]
    if tuple(tensor.shape) != shape:
        hint = ""
        if tensor.ndim == 4:
            hint = " (one image at a time)"
        elif found == (*shape[1:], shape[0]):
            hint = " (channels come first: permute it)"
        raise ImageError(f"a tensor image must have the model's input shape {shape}, not {found}{hint}")
    tensor = tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise ImageError("the tensor image contains NaN or infinite values")
    return tensor


def _check_picture_array(array: NDArray[Any], max_pixels: int) -> NDArray[Any]:
    """The array as (H, W, 1 or 3), uint8 or uint16."""
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"an image array has dtype uint8 or uint16 (a picture, H×W×C) or float (the model's input, C×H×W), "
            f"not {array.dtype}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        hint = " (channels come last in a picture: transpose it)" if array.ndim == 3 and len(array) in (1, 3) else ""
        raise ImageError(f"a picture array is H×W or H×W×C with 1, 3 or 4 channels, not {array.shape}{hint}")
    _check_size((array.shape[1], array.shape[0]), "the image array", max_pixels)
    return np.ascontiguousarray(array[..., :3])


def _picture_pixels(picture: Image.Image, preprocessing: Preprocessing, label: str) -> Tensor:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _resize_planes(_deep_gray(picture, label), preprocessing)
    picture = picture.convert("L" if preprocessing.channels == 1 else "RGB")
    size = (preprocessing.width, preprocessing.height)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    array = np.asarray(picture, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())


def _deep_gray(picture: Image.Image, label: str) -> NDArray[Any]:
    """A gray picture of more than 8 bits as (H, W, 1) in [0, 1]: 16-bit integers, or floats in [0, 1] already."""
    values = np.asarray(picture).astype(np.float32)[..., None] / np.float32(1 if picture.mode == "F" else 65535)
    # NaN fails this comparison too.
    if not (values.min() >= 0 and values.max() <= 1):
        expected = "floats in [0, 1]" if picture.mode == "F" else "integers of 16 bits"
        raise ImageError(f"{label} is gray of mode {picture.mode}, which must hold {expected}; rescale it first")
    return values


def _resize_planes(planes: NDArray[Any], preprocessing: Preprocessing) -> Tensor:
    """Planes (H, W, 1 or 3) in [0, 1] as pixels of the model's channels and size, without rounding to 8 bits."""
    if preprocessing.channels == 1 and planes.shape[2] == 3:
        planes = np.matmul(planes, _LUMA, dtype=np.float32)[..., None]
    size = (preprocessing.width, preprocessing.height)
    if planes.shape[1::-1] != size:
        resized = [
            Image.fromarray(np.ascontiguousarray(planes[..., channel])).resize(size, Image.Resampling.BILINEAR)
            for channel in range(planes.shape[2])
        ]
        planes = np.stack([np.asarray(plane) for plane in resized], axis=2)
    pixels = torch.from_numpy(planes.transpose(2, 0, 1).copy()).clamp(0, 1)
    return pixels.expand(preprocessing.channels, -1, -1).contiguous()
