"""Fills: what each kind puts in place of the pixels, in the model's input space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from krypton.errors import BindError, ImageError
from krypton.fills import FILL_NAMES, Fill, make_fill
from krypton.images import LoadedImage, Preprocessing, load_image

RGB = Preprocessing(3, 32, 48, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
GRAY = Preprocessing(1, 32, 48, (0.5,), (0.25,))


@pytest.fixture(scope="module")
def picture() -> LoadedImage:
    array = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return load_image(array, RGB, max_pixels=10_000)


@pytest.fixture(scope="module")
def tensor_image() -> LoadedImage:
    return load_image(torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(0)) * 3, RGB, max_pixels=10_000)


def fill(spec: object, image: LoadedImage, preprocessing: Preprocessing = RGB, seed: int = 0) -> Fill:
    return make_fill(spec, image, preprocessing, seed=seed)  # type: ignore[arg-type]


def as_pixels(values: torch.Tensor) -> torch.Tensor:
    """Undo the normalisation of `RGB`."""
    return values * torch.tensor(RGB.std).view(3, 1, 1) + torch.tensor(RGB.mean).view(3, 1, 1)


@pytest.mark.parametrize(("name", "level"), [("black", 0), ("gray", 128), ("WHITE", 255), ("Gray", 128)])
def test_named_colours_are_levels_of_pixels(name: str, level: int, picture: LoadedImage) -> None:
    made = fill(name, picture)
    torch.testing.assert_close(as_pixels(made.values), torch.full((3, 32, 48), level / 255))
    assert made.values.dtype == torch.float32
    assert made.description == name.lower()
    same = load_image(np.full((32, 48, 3), level, dtype=np.uint8), RGB, max_pixels=10_000)
    assert torch.equal(made.values, same.input)  # to the bit: hiding such pixels must change nothing
    assert made.content_hash == same.content_hash


def test_mean_is_per_channel(picture: LoadedImage, tensor_image: LoadedImage) -> None:
    expected = picture.pixels.mean((1, 2))[:, None, None].expand(3, 32, 48)
    torch.testing.assert_close(as_pixels(fill("mean", picture).values), expected)
    expected = tensor_image.input.mean((1, 2))[:, None, None].expand(3, 32, 48)
    torch.testing.assert_close(fill("mean", tensor_image).values, expected)


def test_blur_is_a_gaussian_of_a_sixteenth_of_the_shorter_side(picture: LoadedImage, tensor_image: LoadedImage) -> None:
    for image, base in ((picture, picture.pixels), (tensor_image, tensor_image.input)):
        expected = torch.stack([torch.from_numpy(gaussian_filter(c.numpy(), 2, mode="mirror", radius=6)) for c in base])
        values = fill("blur", image).values
        found = values if image is tensor_image else as_pixels(values)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_images_of_any_size_can_be_blurred() -> None:
    for size in ((1, 1), (1, 40), (2, 3), (5, 5)):
        plain = Preprocessing(1, *size, (0.0,), (1.0,))
        image = load_image(np.full(size, 51, dtype=np.uint8), plain, max_pixels=100)
        torch.testing.assert_close(make_fill("blur", image, plain, seed=0).values, torch.full((1, *size), 0.2))


def test_noise_follows_its_seed(picture: LoadedImage) -> None:
    noise = fill("noise", picture, seed=1)
    pixels = as_pixels(noise.values)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert pixels.std() == pytest.approx(12**-0.5, rel=0.05)  # uniform
    assert torch.equal(noise.values, fill("noise", picture, seed=1).values)
    assert noise.content_hash != fill("noise", picture, seed=2).content_hash
    assert noise.description == "noise (seed 1)"


def test_rgb_is_a_colour_and_luma_for_gray_models(picture: LoadedImage) -> None:
    values = as_pixels(fill((10, 20, 255), picture).values)
    torch.testing.assert_close(values[:, 3, 4], torch.tensor([10, 20, 255]) / 255)
    gray_image = load_image(np.zeros((32, 48), dtype=np.uint8), GRAY, max_pixels=10_000)
    luma = fill((10, 20, 255), gray_image, GRAY).values * 0.25 + 0.5
    torch.testing.assert_close(luma, torch.full((1, 32, 48), round(0.299 * 10 + 0.587 * 20 + 0.114 * 255) / 255))


@pytest.mark.parametrize("spec", [(1, 2), (1, 2, 256), (-1, 0, 0), (0.5, 0.5, 0.5), (True, 0, 0), ("a", "b", "c")])
def test_colours_that_are_none_are_refused(spec: object, picture: LoadedImage) -> None:
    with pytest.raises(BindError, match=r"RGB\(r, g, b\)"):
        fill(spec, picture)


def test_pictures_are_fills_resized_to_the_model(tmp_path: Path, picture: LoadedImage) -> None:
    path = tmp_path / "noise.png"  # a path, although "noise" is a name
    Image.new("RGB", (7, 5), (255, 0, 51)).save(path)
    for spec in (path, str(path), Image.open(path), np.asarray(Image.open(path))):
        values = as_pixels(fill(spec, picture).values)
        torch.testing.assert_close(values, torch.tensor([1, 0, 0.2])[:, None, None].expand(3, 32, 48))
    assert fill(path, picture).description == f"'{path}'"
    with pytest.raises(ImageError, match="does not exist"):
        fill(str(tmp_path / "nois.png"), picture)


def test_an_unknown_name_suggests_the_nearest(picture: LoadedImage) -> None:
    with pytest.raises(BindError, match=r'unknown fill "grey"\. Did you mean "gray"\?.*image file'):
        fill("grey", picture)
    with pytest.raises(BindError, match=", ".join(sorted(FILL_NAMES))):
        fill("x" * 5000, picture)


@pytest.mark.parametrize("shape", [(), (3,), (3, 1, 1), (1, 32, 48), (3, 32, 48)])
def test_numbers_and_tensors_live_in_the_space_of_the_image(
    shape: tuple[int, ...], picture: LoadedImage, tensor_image: LoadedImage
) -> None:
    spec = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    full = (spec.view(3, 1, 1) if shape == (3,) else spec).expand(3, 32, 48)
    for given in (spec, spec.double(), spec.numpy()):
        torch.testing.assert_close(fill(given, tensor_image).values, full)
        torch.testing.assert_close(as_pixels(fill(given, picture).values), full)


def test_a_number_on_a_tensor_image_is_not_normalised(tensor_image: LoadedImage) -> None:
    assert (fill(-7, tensor_image).values == -7).all()
    assert fill(0.25, tensor_image).description == "0.25"


def test_a_named_colour_on_a_tensor_image_is_normalised(tensor_image: LoadedImage, picture: LoadedImage) -> None:
    assert torch.equal(fill("gray", tensor_image).values, fill("gray", picture).values)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (float("nan"), "NaN"),
        (torch.full((3,), float("inf")), "infinite"),
        (128, "from 0 to 1; this one goes from 128 to 128.*RGB"),
        (torch.zeros(4), r"shape \(4,\) does not broadcast"),
        (torch.zeros(1, 3, 32, 48), "does not broadcast"),
        (torch.zeros(3, dtype=torch.uint8), "floating point"),
        (np.zeros((32, 48, 3), dtype=np.int32), "dtype uint8"),
        (True, "cannot be True"),
        (None, "NoneType is not an image"),
    ],
)
def test_values_that_cannot_fill_are_refused_in_words(spec: object, message: str, picture: LoadedImage) -> None:
    with pytest.raises(BindError, match=message):
        fill(spec, picture)


def test_models_of_other_channels_have_gray_fills_but_no_colours() -> None:
    two = Preprocessing(2, 8, 8, (0.0, 0.5), (1.0, 1.0))
    image = load_image(torch.zeros(2, 8, 8), two, max_pixels=100)
    assert make_fill("white", image, two, seed=0).values[:, 0, 0].tolist() == [1, 0.5]
    with pytest.raises(BindError, match="2 channels"):
        make_fill((1, 2, 3), image, two, seed=0)
