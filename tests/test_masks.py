"""Masks: read from tensors, archives and label images, or found as superpixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from krypton import masks as masks_module
from krypton.errors import BindError, ImageError
from krypton.images import Preprocessing, load_image
from krypton.masks import load_masks, superpixels

SIZE = (6, 8)


@pytest.fixture
def three() -> torch.Tensor:
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, :2], masks[1, 2:4, 3], masks[2, 5, 7] = True, True, True
    return masks


def test_tensors_and_arrays_of_bools_and_integers_are_the_same(three: torch.Tensor) -> None:
    sources = (three, three.numpy(), three.byte(), three.byte() * 255, three.long(), three.int().numpy())
    for source in sources:
        loaded = load_masks(source, *SIZE)
        assert loaded.dtype == torch.bool
        assert torch.equal(loaded, three)
    assert torch.equal(load_masks(three[1], *SIZE), three[1:2])


def test_a_loaded_tensor_does_not_follow_later_changes(three: torch.Tensor) -> None:
    loaded = load_masks(three, *SIZE)
    three[:] = True
    assert loaded[2].sum() == 1


def test_archives_hold_masks_by_name_or_alone(three: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, masks=three.numpy(), other=np.zeros(3))
    assert torch.equal(load_masks(path, *SIZE), three)
    np.savez(path, anything=three.numpy())
    assert torch.equal(load_masks(str(path), *SIZE), three)
    np.savez(path, one=three.numpy(), two=three.numpy())
    with pytest.raises(ImageError, match='array named "masks", or one array; it has one, two'):
        load_masks(path, *SIZE)


def test_archives_with_pickles_and_broken_ones_are_refused(three: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    np.savez(path, masks=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ImageError, match=r"m\.npz' cannot be read"):
        load_masks(path, *SIZE)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"m\.npz' cannot be read"):
        load_masks(path, *SIZE)


@pytest.mark.parametrize("kind", ["8 bit", "16 bit", "palette"])
def test_every_label_of_an_image_is_a_mask(kind: str, three: torch.Tensor, tmp_path: Path) -> None:
    labels = (three * torch.tensor([7, 40, 200])[:, None, None]).sum(0).numpy().astype(np.uint8)
    path = tmp_path / "labels.png"
    if kind == "16 bit":
        Image.fromarray(labels.astype(np.uint16) * 300).save(path)
    elif kind == "palette":
        picture = Image.fromarray(labels)
        picture.putpalette(list(range(256)) * 3)
        picture.save(path)
    else:
        Image.fromarray(labels).save(path)
    assert torch.equal(load_masks(path, *SIZE), three)


def test_colour_pictures_are_no_label_images(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", SIZE[::-1], (1, 2, 3)).save(path)
    with pytest.raises(ImageError, match=r"photo\.png' has mode RGB; expected one channel"):
        load_masks(path, *SIZE)


def test_masks_without_a_pixel_are_named(three: torch.Tensor) -> None:
    three[1] = False
    with pytest.raises(BindError, match=r"without a single pixel \(numbered from 0\): 1\."):
        load_masks(three, *SIZE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.ones(2, 6, 9, dtype=torch.bool), "6x9 pixels do not fit the model's input of 6x8"),
        (torch.ones(0, 6, 8, dtype=torch.bool), "there are no masks"),
        (torch.ones(2, 6, 8), "bool or integers, not float32"),
        (torch.ones(2, 1, 6, 8, dtype=torch.bool), r"\(n, height, width\)"),
        (torch.arange(48).view(6, 8), "several values besides 0"),
        (42, "not int"),
        ("masks.txt", "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_masks(source, *SIZE)  # type: ignore[arg-type]


def test_files_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    Image.new("L", (9, 6), 1).save(path)
    with pytest.raises(ImageError, match="6x9 pixels do not fit"):
        load_masks(path, *SIZE)
    Image.new("L", (8, 6), 0).save(path)
    with pytest.raises(ImageError, match="there are no masks"):
        load_masks(path, *SIZE)
    path.rename(tmp_path / "labels.gif")
    with pytest.raises(ImageError, match=r"\.npz or \.png"):
        load_masks(tmp_path / "labels.gif", *SIZE)


def test_more_masks_than_memory_takes_are_refused(three: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "MAX_CELLS", 100)
    with pytest.raises(ImageError, match="more than 100 bytes"):
        load_masks(three, *SIZE)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_superpixels_partition_the_image_along_its_colours(channels: int, as_tensor: bool) -> None:
    preprocessing = Preprocessing(channels, 40, 40, (0.5,) * channels, (0.25,) * channels)
    array = np.zeros((40, 40), dtype=np.uint8)
    array[:, 20:] = 255
    image = load_image(array, preprocessing, max_pixels=10_000)
    if as_tensor:
        image = load_image(image.input, preprocessing, max_pixels=10_000)
    masks = superpixels(image, 16)
    assert masks.dtype == torch.bool
    assert 8 <= len(masks) <= 24
    assert torch.equal(masks.sum(0), torch.ones(40, 40, dtype=torch.int64))
    left, right = masks[:, :, :20].any(2).any(1), masks[:, :, 20:].any(2).any(1)
    assert not (left & right).any()
    assert torch.equal(masks, superpixels(image, 16))


def test_superpixels_take_a_possible_number() -> None:
    preprocessing = Preprocessing(1, 4, 4, (0.5,), (0.25,))
    image = load_image(np.zeros((4, 4), dtype=np.uint8), preprocessing, max_pixels=100)
    assert superpixels(image, 1).all()
    for n in (0, 17):
        with pytest.raises(BindError, match="from 1 to 16"):
            superpixels(image, n)
