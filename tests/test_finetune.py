"""Retraining on folders of pictures: tiny ones, of classes that differ in colour."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import krypton
from benchmarks.examples import example

SIZE = 32
COLOURS = {"blue": (30, 60, 200), "red": (200, 60, 30)}


@pytest.fixture(scope="module")
def finetune() -> ModuleType:
    return example("finetune")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for number in range(10):
            pixels = np.clip(np.array(colour) + draw.normal(0, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_pictures_are_read_with_their_classes_and_each_fifth_is_held_out(finetune: ModuleType, folder: Path) -> None:
    pictures = finetune.read_folder(folder, SIZE)
    training, held_out = finetune.split(pictures)
    assert pictures.images.shape == (20, 3, SIZE, SIZE)
    assert pictures.names == ("blue", "red")
    assert training.labels.bincount().tolist() == [8, 8]
    assert held_out.labels.bincount().tolist() == [2, 2]


def test_folders_without_classes_are_refused(finetune: ModuleType, folder: Path, tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "none", folder / "red"):
        with pytest.raises(ValueError, match="two subfolders or more"):
            finetune.read_folder(wrong, SIZE)
    few = finetune.read_folder(folder, SIZE).of(torch.tensor([0, 1, 10]))
    with pytest.raises(ValueError, match="needs 5 pictures"):
        finetune.split(few)


@pytest.mark.parametrize("trunk", [(), ("layer4",)])
def test_last_layer_learns_and_krypton_reads_what_is_saved(
    finetune: ModuleType, folder: Path, tmp_path: Path, trunk: tuple[str, ...]
) -> None:
    training, held_out = finetune.split(finetune.read_folder(folder, SIZE))
    found = finetune.retrain("resnet18", training, held_out, trunk=trunk, epochs=1)
    assert found.accuracy == 1
    assert found.start == "random, calibrated on the pictures"
    path = tmp_path / "colours.safetensors"
    finetune.save(found, "resnet18", path, SIZE)
    image = held_out.images[0].permute(1, 2, 0).numpy()
    with krypton.connect() as con:
        con.sql(f"CREATE MODEL colours FROM '{path}' INPUT 3x{SIZE}x{SIZE}")
        answer = con.sql("EXPLAIN OCCLUSION OF $image USING MODEL colours STRIDE 16", params={"image": image}).run()
    expected = found.module(finetune.normalised(held_out.images[:1]))[0]
    torch.testing.assert_close(answer.base_logits, expected, rtol=1e-3, atol=1e-3)


def test_only_the_parts_named_are_trained(finetune: ModuleType, folder: Path) -> None:
    pictures = finetune.read_folder(folder, SIZE)
    module, _ = finetune.begin("resnet18", 2, None, pictures.images)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    finetune.train_trunk(module, pictures.of(torch.arange(0, 20, 2)), ("layer4",), 1, 0)
    changed = {name.split(".")[0] for name, tensor in module.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"layer4", "fc"}


def test_random_trunks_without_batch_norm_are_scaled_and_the_same_at_all_places(finetune: ModuleType) -> None:
    torch.manual_seed(0)
    features = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 6, 3), torch.nn.ReLU())
    net = torch.nn.Sequential(features, torch.nn.Flatten(), torch.nn.Linear(6 * 16, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    finetune._same_at_all_places(net[2], features)
    inputs = torch.rand(64, 3, 8, 8) * 0.01
    finetune.calibrate(net, inputs)
    by_place = net[2].weight.view(5, 6, 16)
    assert by_place.std(2).max() < 1e-6 * by_place.abs().max()
    for part in (net[:1][0][:1], net[0][:3], net[:3]):
        output = part(inputs)
        axes = [axis for axis in range(output.dim()) if axis != 1]
        torch.testing.assert_close(output.mean(axes), torch.zeros(output.shape[1]), rtol=0, atol=1e-3)
        torch.testing.assert_close(output.std(axes), torch.ones(output.shape[1]), rtol=0, atol=1e-2)


def test_weights_on_this_computer_are_taken(finetune: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    images = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    assert finetune.own_weights("resnet18") is None
    state = torchvision.models.resnet18(weights=None).state_dict()
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    torch.save(state, file)
    module, start = finetune.begin("resnet18", 3, None, images)
    assert start == "torchvision's ResNet18_Weights.IMAGENET1K_V1"
    assert module.conv1.weight.equal(state["conv1.weight"])
    assert module.fc.out_features == 3
    with pytest.raises(ValueError, match="not those of resnet18"):
        finetune.begin("resnet18", 3, _with_another_shape(state, tmp_path), images)


def _with_another_shape(state: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save(state | {"conv1.weight": torch.zeros(1)}, folder / "other.pth")
    return folder / "other.pth"


def test_inception_takes_inputs_normalised_as_those_of_others(finetune: ModuleType) -> None:
    torch.manual_seed(0)
    module = finetune._build("inception_v3").eval()
    pixels = torch.rand(1, 3, 75, 75)
    expected = module(pixels * 2 - 1)
    finetune._normalise_as_others(module)
    mean, std = (torch.tensor(values)[:, None, None] for values in (finetune.MEAN, finetune.STD))
    torch.testing.assert_close(module((pixels - mean) / std), expected, rtol=1e-4, atol=1e-4)
