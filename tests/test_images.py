"""Images: every kind of source gives the same pixels; everything unusable is refused in words."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from krypton.errors import BindError, ImageError
from krypton.images import LoadedImage, Preprocessing, hash_tensor, load_image

RGB = Preprocessing(3, 12, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
GRAY = Preprocessing(1, 12, 16, (0.5,), (0.25,))
PLAIN = Preprocessing(3, 12, 16, (0.0,) * 3, (1.0,) * 3)


def load(source: object, preprocessing: Preprocessing = RGB, max_pixels: int = 10_000) -> LoadedImage:
    return load_image(source, preprocessing, max_pixels=max_pixels)  # type: ignore[arg-type]


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def test_a_file_an_array_a_pil_image_and_bytes_give_the_same(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(array).save(path)
    expected = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    for source in (path, str(path), path.read_bytes(), array, Image.fromarray(array)):
        loaded = load(source)
        assert torch.equal(loaded.pixels, expected)
        assert loaded.pixels.dtype == loaded.input.dtype == torch.float32
        torch.testing.assert_close(loaded.input[1], (expected[1] - 0.4) / 0.25)
        assert loaded.content_hash == load(array).content_hash
    assert load(path).name == str(path)
    assert load(array).name == "image"


def test_a_tensor_is_the_models_input_as_it_is() -> None:
    tensor = torch.randn(3, 12, 16)
    for source in (tensor, tensor[None], tensor.numpy(), tensor.double(), tensor.clone().requires_grad_()):
        loaded = load(source)
        assert loaded.pixels is None
        assert torch.equal(loaded.input, tensor)
    before = loaded.input.clone()
    tensor.zero_()
    assert torch.equal(load(before).input, before)
    assert not loaded.input.requires_grad


def test_a_loaded_tensor_does_not_follow_later_changes() -> None:
    tensor = torch.ones(3, 12, 16)
    loaded = load(tensor)
    tensor.zero_()
    assert loaded.input.sum() == 3 * 12 * 16


def test_the_whole_picture_is_resized_to_the_models_size() -> None:
    big = np.zeros((48, 80, 3), dtype=np.uint8)
    big[:, :5] = 255  # one sixteenth of the width: one column of the result, had nothing been cropped
    loaded = load(big, PLAIN)
    assert loaded.input.shape == (3, 12, 16)
    assert (loaded.pixels[:, :, 0] > 0.7).all()
    assert (loaded.pixels[:, :, 2:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "RGB"])
def test_every_mode_becomes_the_models_channels(mode: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 12), (255, 255, 255)).convert(mode)
    for preprocessing in (RGB, GRAY):
        loaded = load(picture, preprocessing)
        assert loaded.pixels.shape == preprocessing.shape
        assert loaded.pixels.min() > 0.98


def test_a_palette_with_transparency_is_read_without_warnings(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    picture = Image.new("P", (16, 12), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(path, transparency=bytes([0, 128]))
    assert load(path, PLAIN).pixels[:, 3, 3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_gray_keeps_its_depth(suffix: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (12, 16), dtype=np.uint16)
    path = tmp_path / f"scan.{suffix}"
    Image.fromarray(values).save(path)
    expected = torch.from_numpy(values.astype(np.float32) / 65535)
    torch.testing.assert_close(load(path, GRAY).pixels[0], expected, rtol=0, atol=1e-7)
    assert torch.equal(load(values, GRAY).pixels, load(path, GRAY).pixels)
    assert torch.equal(load(path).pixels, load(path, GRAY).pixels.expand(3, -1, -1))


def test_sixteen_bit_colour_arrays_are_converted_and_resized() -> None:
    values = np.full((24, 30, 3), 30_000, dtype=np.uint16)
    torch.testing.assert_close(load(values, GRAY).pixels, torch.full((1, 12, 16), 30_000 / 65535))
    torch.testing.assert_close(load(values, PLAIN).pixels, torch.full((3, 12, 16), 30_000 / 65535))


def test_float_tiffs_hold_zero_to_one(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((12, 16), 0.25, dtype=np.float32)).save(path)
    assert (load(path, GRAY).pixels == 0.25).all()
    Image.fromarray(np.full((12, 16), 3.0, dtype=np.float32)).save(path)
    with pytest.raises(ImageError, match=r"float\.tif' is gray of mode F, which must hold floats in \[0, 1\]"):
        load(path, GRAY)


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    upright = np.zeros((12, 16, 3), dtype=np.uint8)
    upright[:2] = 255
    path = tmp_path / "phone.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif)
    pixels = load(path, PLAIN).pixels
    assert (pixels[:, :2] == 1).all()
    assert (pixels[:, 2:] == 0).all()


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (200, 200)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"huge\.png' has 200x200 pixels, more than 10,000: .*max_image_pixels"):
        load(path)


@pytest.mark.parametrize("limit", [150, 10])  # Pillow warns above its limit and raises above twice that
def test_pillows_own_limit_neither_warns_nor_leaks(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.png"
    Image.new("L", (16, 12), 255).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    if limit == 150:
        assert load(path).pixels.min() == 1
    else:
        with pytest.raises(ImageError, match="more pixels than may be decoded"):
            load(path)


def test_missing_files_suggest_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "lion.png").touch()
    with pytest.raises(ImageError, match=r"loin\.png' does not exist\. Did you mean \"lion\.png\""):
        load(tmp_path / "loin.png")
    with pytest.raises(ImageError, match="no folder"):
        load(tmp_path / "nowhere" / "lion.png")


def test_folders_garbage_and_truncated_files_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ImageError, match=r"notes\.png' is not an image"):
        load(tmp_path / "notes.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png' is not an image"):
        load(tmp_path / "empty.png")
    for kind in ("png", "jpeg", "tiff", "bmp", "gif"):
        buffer = io.BytesIO()
        Image.fromarray(np.tile(array, (8, 8, 1))).save(buffer, kind)
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        with pytest.raises(ImageError, match=r"cut\.\w+' cannot be decoded|cut\.\w+' is not an image"):
            load(path, max_pixels=100_000)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.full((3, 12, 16), float("nan")), "NaN"),
        (torch.full((3, 12, 16), float("inf")), "infinite"),
        (torch.zeros(12, 16, 3), "channels come first"),
        (torch.zeros(2, 3, 12, 16), "one image at a time"),
        (torch.zeros(3, 12, 17), r"shape \(3, 12, 16\), not \(3, 12, 17\)"),
        (torch.zeros(3, 12, 16, dtype=torch.uint8), "floating point, not torch.uint8"),
        (np.zeros((12, 16, 3), dtype=np.int64), "dtype uint8 or uint16"),
        (np.zeros((12, 16, 5), dtype=np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 12, 16), dtype=np.uint8), "channels come last"),
        (np.zeros((0, 16, 3), dtype=np.uint8), "empty"),
        (np.zeros((12,), dtype=np.uint8), "H×W"),
        (Image.new("RGB", (200, 200)), "more than 10,000"),
        (np.zeros((200, 200), dtype=np.uint8), "more than 10,000"),
        (42, "int is not an image"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(source: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(source)


def test_models_of_other_channels_take_tensors_only() -> None:
    four = Preprocessing(4, 12, 16, (0.0,) * 4, (1.0,) * 4)
    assert load(torch.zeros(4, 12, 16), four).input.shape == (4, 12, 16)
    with pytest.raises(ImageError, match="takes 4 channels"):
        load(np.zeros((12, 16, 3), dtype=np.uint8), four)


def test_preprocessing_survives_json_and_checks_itself() -> None:
    assert Preprocessing.from_json(json.loads(json.dumps(RGB.to_json()))) == RGB
    with pytest.raises(BindError, match="MEAN has 1 values"):
        Preprocessing(3, 8, 8, (0.5,), (1.0, 1.0, 1.0))
    with pytest.raises(BindError, match="STD must be positive"):
        Preprocessing(1, 8, 8, (0.5,), (0.0,))
    with pytest.raises(BindError, match="empty"):
        Preprocessing(1, 0, 8, (0.5,), (1.0,))


def test_hashes_tell_values_and_shapes_apart() -> None:
    zeros = torch.zeros(2, 3)
    assert hash_tensor(zeros) == hash_tensor(torch.zeros(3, 2).T)
    assert len({hash_tensor(t) for t in (zeros, zeros.view(3, 2), zeros.double(), zeros + 1)}) == 4


def test_importing_images_and_results_imports_no_plotting() -> None:
    code = (
        "import sys, krypton.images, krypton.fills, krypton.masks, krypton.results, krypton.results.files;"
        "print([m for m in ('matplotlib', 'skimage', 'scipy', 'duckdb', 'torchvision', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
