"""`explain_occlusion`: every kind of image, the same answers as the statement, and mistakes in its arguments."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from session_net import LABELS, SHAPE, SmallNet

import krypton
from krypton import BindError, CaptureError, Heatmap, ImageError, explain_occlusion
from krypton.api import _session

SAID: dict[str, Any] = {"mean": 0.5, "std": 0.25, "labels": LABELS}


def test_it_is_the_statement_in_one_call(con: krypton.Connection, net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    text = (
        "EXPLAIN OCCLUSION OF $img USING MODEL net FOR CLASS 'fluid' SCORE LOGIT PATCH 6x8 STRIDE 4x2 FILL NOISE "
        "IN REGION (0, 0, 12, 20) WITH (seed => 4)"
    )
    wanted = con.sql(text, {"img": pixels}).run()
    given = explain_occlusion(
        net,
        pixels,
        patch=(6, 8),
        stride=(4, 2),
        fill="noise",
        target="Fluid",
        score="logit",
        region=(0, 0, 12, 20),
        seed=4,
        **SAID,
    )
    assert isinstance(given, Heatmap)
    assert torch.allclose(given.logits, wanted.logits, atol=1e-6)
    assert np.array_equal(given.heatmap, wanted.heatmap)
    assert given.label == "fluid"


def test_every_kind_of_picture_is_the_same(net: SmallNet, pixels: NDArray[np.uint8], scan: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    pictures = (pixels, Image.fromarray(pixels), scan, str(scan), buffer.getvalue())
    maps = [explain_occlusion(net, picture, patch=8, stride=8, mode="naive", **SAID) for picture in pictures]
    assert all(torch.equal(heatmap.logits, maps[0].logits) for heatmap in maps[1:])
    assert maps[0].image_size == (20, 24)


def test_a_tensor_is_the_models_input_as_it_is(net: SmallNet) -> None:
    image = torch.randn(SHAPE)
    heatmap = explain_occlusion(net, image, patch=8, stride=4, fill=0.0)
    changed = image.clone()
    changed[:, 4:12, 8:16] = 0
    with torch.no_grad():
        assert torch.allclose(heatmap.base_logits, net.eval()(image[None])[0], atol=1e-5)
        assert torch.allclose(heatmap.logits[1, 2], net(changed[None])[0], atol=1e-5)


def test_the_size_of_the_tensor_is_the_size_of_the_input(net: SmallNet) -> None:
    assert explain_occlusion(net, torch.randn(3, 17, 31), patch=8, stride=8, mode="naive").image_size == (17, 31)
    assert explain_occlusion(net, np.zeros((1, 3, 17, 31), np.float32), patch=8, mode="naive").image_size == (17, 31)


def test_gray_without_normalisation_is_half(net: SmallNet) -> None:
    image = torch.randn(SHAPE)
    gray, half = (explain_occlusion(net, image, patch=8, stride=8, mode="naive", fill=fill) for fill in ("gray", 128 / 255))
    assert torch.allclose(gray.logits, half.logits, atol=1e-6)


def test_a_model_of_one_channel_takes_colour_pictures_as_gray(pixels: NDArray[np.uint8]) -> None:
    heatmap = explain_occlusion(SmallNet(channels=1), pixels, patch=8, stride=8, mode="naive")
    assert heatmap.image.input.shape == (1, 20, 24)


def test_an_input_shape_resizes_pictures(net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    heatmap = explain_occlusion(net, pixels, patch=8, stride=8, mode="naive", input_shape=(3, 16, 40))
    assert heatmap.image_size == (16, 40)


def test_a_sideways_photo_is_as_large_as_it_stands_upright(net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    photo = Image.fromarray(pixels)
    exif = photo.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    photo.save(buffer, "PNG", exif=exif)
    assert explain_occlusion(net, buffer.getvalue(), patch=8, stride=8, mode="naive").image_size == (24, 20)


def test_large_pictures_need_a_size(net: SmallNet) -> None:
    with pytest.raises(BindError, match=r"1100x1000 pixels.*input_shape=\(3, 224, 224\)"):
        explain_occlusion(net, np.zeros((1100, 1000, 3), np.uint8))


def test_masks_of_any_shape(net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    masks = np.zeros((2, 20, 24), dtype=bool)
    masks[0, 3, :], masks[1, ::2, 5] = True, True
    exact = explain_occlusion(net, pixels, masks=masks)
    naive = explain_occlusion(net, pixels, masks=torch.from_numpy(masks), mode="NAIVE")
    assert exact.heatmap.shape == (2,)
    assert torch.allclose(exact.logits, naive.logits, atol=1e-5)


def test_a_graph_is_captured_once_for_a_module(
    net: SmallNet, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    explain_occlusion(net, pixels, patch=8, stride=8)
    monkeypatch.setattr("krypton.graphs.capture", lambda *args: pytest.fail("captured again"))
    explain_occlusion(net, pixels, patch=5, stride=5)


def test_activation_and_progress(net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    seen: list[int] = []
    heatmap = explain_occlusion(
        net, pixels, patch=8, stride=8, mode="naive", activation="NONE", progress=lambda done, total: seen.append(done)
    )
    assert heatmap.base_score == pytest.approx(float(heatmap.base_logits.max()))
    assert seen[-1] == heatmap.known.numel()


def test_a_source_is_loaded(tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    heatmap = explain_occlusion("torchvision:shufflenet_v2_x0_5", pixels, patch=200, stride=200, mode="naive")
    assert heatmap.logits.shape == (1, 1, 1000)
    assert "weights are random" in heatmap.info["notes"][0]
    assert "weights are random" in repr(heatmap)
    with pytest.raises(BindError, match="mean, labels: a model from a source has its own"):
        explain_occlusion("torchvision:shufflenet_v2_x0_5", pixels, mean=0.5, labels=["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 25}, "patch 25×25 is larger"),
        ({"patch": (4, 5, 6)}, "patch is a whole number, or two"),
        ({"patch": "8"}, "patch is a whole number, or two"),
        ({"patch": 4.5}, "patch is a whole number, or two"),
        ({"stride": 0}, "at least 1×1"),
        ({"region": (0, 0, 9)}, "four whole numbers"),
        ({"region": 7}, "four whole numbers"),
        ({"target": 4}, "classes are 0 to 3"),
        ({"target": "cat"}, 'unknown class "cat"'),
        ({"target": 1.5}, "an index or a label"),
        ({"score": "logits"}, 'Did you mean "logit"'),
        ({"score": 3}, "unknown score"),
        ({"mode": "fast"}, "unknown mode"),
        ({"mode": "approximate", "ssim": 1.9}, "ssim takes a number above 0"),
        ({"within": 0}, "a number of seconds above 0"),
        ({"device": "tpu"}, "unknown device"),
        ({"strides": 4}, "unknown option"),
        ({"tau": 0.5}, "needs MODE APPROXIMATE"),
        ({"fill": "grey"}, 'Did you mean "gray"'),
        ({"fill": 128}, "pixel space, from 0 to 1"),
        ({"labels": ["a", "b"]}, "2 LABELS"),
        ({"labels": "abcd"}, "list of texts"),
        ({"mean": (0.1, 0.2)}, "MEAN has 2 values"),
        ({"mean": "dark"}, "one number per channel"),
        ({"std": 0}, "STD must be positive"),
        ({"std": float("nan")}, "one finite number per channel"),
        ({"activation": "relu"}, "unknown activation"),
        ({"input_shape": (3, 8)}, "channels, height, width"),
        ({"input_shape": (1, 20, 24)}, "does not take images of 1x20x24"),
    ],
)
def test_mistakes_in_arguments(arguments: dict[str, Any], message: str, net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match=message):
        explain_occlusion(net, pixels, **(SAID | {"patch": 8} | arguments))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("missing.png", "does not exist"),
        (torch.zeros(20, 24), "shape"),
        (torch.full(SHAPE, torch.nan), "NaN"),
        (torch.zeros(SHAPE, dtype=torch.int64), "floating point"),
        (np.zeros((4,), np.uint8), "picture array"),
        (b"not an image", "not an image"),
        (None, "not an image"),
        (7, "not an image"),
    ],
)
def test_mistakes_in_images(image: Any, message: str, net: SmallNet) -> None:
    with pytest.raises(ImageError, match=message):
        explain_occlusion(net, image, patch=1)


def test_wrong_channels(net: SmallNet) -> None:
    with pytest.raises(BindError, match="does not take images of 1x20x24"):
        explain_occlusion(net, torch.zeros(1, 20, 24), patch=8)


@pytest.mark.parametrize("model", [None, 3, SmallNet, {"fc": 1}])
def test_what_is_no_model(model: Any, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match=r"a model is a torch\.nn\.Module"):
        explain_occlusion(model, pixels)


def test_nan_in_the_weights(pixels: NDArray[np.uint8]) -> None:
    module = SmallNet()
    module.conv2.weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(CaptureError, match=r"NaN.*conv2\.weight"):
        explain_occlusion(module, pixels, patch=8)


def test_calls_leave_nothing_behind(net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    explain_occlusion(net, pixels, patch=8, stride=8, mode="naive", batch=3)
    assert _session().settings["batch"] is None
    assert _session().models() == []
