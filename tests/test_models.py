"""Models and where they come from: modules, exported programs, checkpoints, torchvision, pickles; and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from krypton import sources
from krypton.errors import BindError, CaptureError
from krypton.models import Definition, Loaded, check_shape, first_channels, make_model, read_labels

SMALL = "shufflenet_v2_x0_5"  # the fewest weights among torchvision's


class Tiny(nn.Module):
    """(B, channels, H, W) to (B, classes)."""

    def __init__(self, classes: int = 4, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))
        return y


class Pair(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return (y, y)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def _no_weights_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on what happens to be in this computer's folder of weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def make(module: nn.Module, **said: Any) -> Any:
    return make_model(Loaded(module), Definition("net", **said))


# ---------------------------------------------------------------------------------------------------- making models


def test_input_channels_come_from_the_first_convolution() -> None:
    assert make(Tiny(channels=1), input_shape=None).preprocessing.shape == (1, 224, 224)
    assert first_channels(nn.Linear(3, 2)) == 3


@pytest.mark.parametrize(("outputs", "activation"), [(1, "sigmoid"), (2, "softmax"), (7, "softmax")])
def test_activation_follows_the_number_of_outputs(outputs: int, activation: str) -> None:
    model = make(Tiny(outputs), input_shape=(3, 8, 8))
    assert (model.outputs, model.activation) == (outputs, activation)


def test_what_is_said_comes_before_the_defaults() -> None:
    said = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0), "labels": ("a", "b"), "activation": "none"}
    model = make(Tiny(2), input_shape=(3, 8, 9), **said)
    assert model.preprocessing.shape == (3, 8, 9)
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (model.labels, model.activation, model.notes) == (("a", "b"), "none", ())


def test_a_module_in_train_mode_is_left_as_it_was() -> None:
    module = Tiny()
    module.norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    make(module, input_shape=(3, 8, 8))
    assert module.training
    assert not module.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    module = Tiny()
    module.fc.bias.data[1] = torch.nan
    with pytest.raises(CaptureError, match=r"fc\.bias"):
        make(module, input_shape=(3, 8, 8))


def test_a_size_that_the_model_does_not_take_is_refused_before_any_query() -> None:
    with pytest.raises(BindError, match=r"does not take images of 1x8x8.*INPUT"):
        make(Tiny(), input_shape=(1, 8, 8))


def test_several_outputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="one tensor"):
        make(Pair(), input_shape=(3, 8, 8))


def test_as_many_labels_as_outputs() -> None:
    with pytest.raises(BindError, match=r"3 LABELS.*4 outputs"):
        make(Tiny(4), input_shape=(3, 8, 8), labels=("a", "b", "c"))


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), "3x8x8", 5, (3.5, 8, 8)])
def test_shapes_that_are_none(shape: object) -> None:
    with pytest.raises(BindError, match="channels, height, width"):
        check_shape(shape)


# ---------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("text", ["cat\ndog\nowl\n", json.dumps(["cat", "dog", "owl"]), "\ufeffcat\r\ndog \r\nowl"])
def test_labels_are_lines_or_a_json_list(text: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(text.encode())
    assert read_labels(file) == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog", "line 2 is empty"),
        (b"[1, 2]", "list of texts"),
        (b"[1, 2", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_labels_that_are_none(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(content)
    with pytest.raises(BindError, match=message):
        read_labels(file)


def test_a_missing_labels_file_is_named_with_the_nearest() -> None:
    with pytest.raises(BindError, match=r"does not exist.*test_models\.py"):
        read_labels(Path(__file__).with_name("test_model.py"))


# ---------------------------------------------------------------------------------------------------- torchvision


def test_torchvision_without_weights_has_the_same_random_ones_each_time_and_says_so() -> None:
    state = torch.random.get_rng_state()
    first = sources.load(f"torchvision:{SMALL}")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    second = sources.load(f"torchvision:{SMALL.upper()}")
    assert first.random
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))
    model = make_model(first, Definition("net", f"torchvision:{SMALL}"))
    assert "weights are random" in model.notes[0]
    assert (model.outputs, model.preprocessing.shape, model.preprocessing.mean) == (1000, (3, 224, 224), (0.485, 0.456, 0.406))
    assert model.labels is not None
    assert model.labels[281] == "tabby"


def test_torchvision_takes_weights_that_are_on_this_computer(tmp_path: Path) -> None:
    import torchvision

    source = torchvision.models.get_model(SMALL, weights=None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.get_model_weights(SMALL).DEFAULT.url
    torch.save(source.state_dict(), folder / url.rpartition("/")[2])
    loaded = sources.load(f"torchvision:{SMALL}")
    assert not loaded.random
    assert torch.equal(loaded.module.state_dict()["fc.weight"], source.state_dict()["fc.weight"])


def test_torchvision_weights_that_are_broken_are_named(tmp_path: Path) -> None:
    import torchvision

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / torchvision.models.get_model_weights(SMALL).DEFAULT.url.rpartition("/")[2]
    file.write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(CaptureError, match=rf"{file.name}.* cannot be read, delete it"):
        sources.load(f"torchvision:{SMALL}")


def test_inception_has_its_own_size_and_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sources._architecture("inception_v3").describe()["input_shape"] == (3, 299, 299)
        sources._architecture("googlenet").build(weights=None, num_classes=2)


@pytest.mark.parametrize(("name", "near"), [("resnet81", "resnet18"), ("mobilenetv2", "mobilenet_v2"), ("", "resnet18")])
def test_unknown_architectures_suggest_the_nearest_classifier(name: str, near: str) -> None:
    with pytest.raises(BindError, match=near):
        sources.load(f"torchvision:{name}")


# ---------------------------------------------------------------------------------------------------- checkpoints


def checkpoint(classes: int, channels: int = 3) -> dict[str, Tensor]:
    """A state_dict of torchvision's smallest model, with other classes and channels."""
    import torchvision

    module = torchvision.models.get_model(SMALL, weights=None, num_classes=classes)
    if channels != 3:
        module.conv1[0] = nn.Conv2d(channels, 24, 3, 2, 1, bias=False)
    state: dict[str, Tensor] = module.state_dict()
    return state


@pytest.mark.parametrize("kind", ["plain", "nested", "parallel", "half"])
def test_a_checkpoint_with_an_architecture_named_beside_it(kind: str, tmp_path: Path) -> None:
    state = checkpoint(classes=3)
    wrapped: dict[str, Any] = {
        "plain": state,
        "nested": {"epoch": 3, "state_dict": state},
        "parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "half": {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
    }[kind]
    file = tmp_path / "lesions.pth"
    torch.save(wrapped, file)
    loaded = sources.load(f"torchvision:{SMALL}@{file}")
    model = make_model(loaded, Definition("net"))
    assert (model.outputs, model.labels, model.weights_random) == (3, None, False)
    assert loaded.module.state_dict()["fc.weight"].dtype == torch.float32
    assert torch.allclose(loaded.module.state_dict()["fc.weight"], state["fc.weight"], atol=1e-3)


def test_a_checkpoint_of_one_channel_takes_gray_images(tmp_path: Path) -> None:
    file = tmp_path / "scan.safetensors"
    save_file(checkpoint(classes=1000, channels=1), file)
    model = make_model(sources.load(f"torchvision:{SMALL}@{file}"), Definition("net"))
    assert model.preprocessing.shape == (1, 224, 224)
    assert model.preprocessing.mean == pytest.approx((0.449,), abs=1e-3)
    assert model.labels is not None


@pytest.mark.parametrize("architecture", [SMALL, f"torchvision:{SMALL}"])
def test_safetensors_name_their_architecture_in_the_metadata(architecture: str, tmp_path: Path) -> None:
    file = tmp_path / "lesions.safetensors"
    save_file(checkpoint(classes=5), file, metadata={"architecture": architecture})
    assert sources.load(str(file)).outputs == 5


def test_a_checkpoint_names_its_architecture_beside_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "lesions.pth"
    torch.save({"arch": SMALL, "state_dict": checkpoint(classes=5)}, file)
    assert sources.load(str(file)).outputs == 5


def test_a_checkpoint_without_architecture_says_how_to_name_it(tmp_path: Path) -> None:
    file = tmp_path / "lesions.pth"
    torch.save(checkpoint(classes=5), file)
    with pytest.raises(BindError, match=r"torchvision:<name>@.*lesions\.pth"):
        sources.load(str(file))


def test_a_checkpoint_of_another_architecture_says_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "lesions.pth"
    torch.save(checkpoint(classes=5), file)
    differs = r"does not fit torchvision's resnet18: \d+ missing: conv1\.weight.*unexpected: conv1\.0"
    with pytest.raises(CaptureError, match=differs):
        sources.load(f"torchvision:resnet18@{file}")


def test_a_checkpoint_without_auxiliary_heads_fits(tmp_path: Path) -> None:
    import torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torchvision.models.get_model("googlenet", weights=None, num_classes=2, aux_logits=False, init_weights=False)
    file = tmp_path / "g.pth"
    torch.save(module.state_dict(), file)
    assert sources.load(f"torchvision:googlenet@{file}").outputs == 2


# ---------------------------------------------------------------------------------------------------- pickles


def test_a_pickled_module_needs_trust(tmp_path: Path) -> None:
    file = tmp_path / "net.pt"
    torch.save(Tiny(), file)
    with pytest.raises(CaptureError, match=r"can run any code.*TRUSTED"):
        sources.load(str(file))
    assert isinstance(sources.load(str(file), trusted=True).module, Tiny)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".pt2"])
@pytest.mark.parametrize("trusted", [False, True])
def test_truncated_and_foreign_files_are_refused(suffix: str, trusted: bool, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(checkpoint(classes=2), whole)
    for number, content in enumerate((whole.read_bytes()[:1000], b"", b"hello, world\n" * 10)):
        file = tmp_path / f"broken{number}{suffix}"
        file.write_bytes(content)
        with pytest.raises(CaptureError, match=rf"broken{number}.*cannot be read"):
            sources.load(str(file), trusted=trusted)


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "numbers.pth"
    torch.save({"architecture": SMALL, "best": 0.93}, file)
    with pytest.raises(CaptureError, match="no weights"):
        sources.load(str(file))


# ---------------------------------------------------------------------------------------------------- programs


def export(module: nn.Module, batch: int, path: Path) -> None:
    example = torch.randn(batch, 3, 10, 12)
    shapes = ({0: torch.export.Dim.DYNAMIC},) if batch > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(module.eval(), (example,), dynamic_shapes=shapes), path)


def test_an_exported_program_says_its_own_input_shape(tmp_path: Path) -> None:
    module = Tiny()
    export(module, 2, tmp_path / "net.pt2")
    model = make_model(sources.load(str(tmp_path / "net.pt2")), Definition("net"))
    image = torch.randn(1, *model.preprocessing.shape)
    assert (model.preprocessing.shape, model.outputs) == ((3, 10, 12), 4)
    with torch.no_grad():
        assert torch.allclose(model.module(image), module(image), atol=1e-6)


# ---------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("source", ["net.onnx", "net", "", "torchvision", "https://example.com/net.h5"])
def test_unknown_sources_say_what_there_is(source: str) -> None:
    with pytest.raises(BindError, match=r"unknown model source.*torchvision:<name>.*\.pt2"):
        sources.load(source)


def test_a_bare_architecture_suggests_its_source() -> None:
    with pytest.raises(BindError, match="Did you mean 'torchvision:resnet18'"):
        sources.load("resnet18")


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "lesion.pth").touch()
    for source in (str(tmp_path / "lesions.pth"), f"torchvision:resnet18@{tmp_path / 'lesions.pth'}"):
        with pytest.raises(BindError, match=r"does not exist.*lesion\.pth"):
            sources.load(source)


def test_sources_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert sources.absolute("torchvision:resnet18") == "torchvision:resnet18"
    assert sources.absolute("net.pt2") == str(tmp_path / "net.pt2")
    assert sources.absolute("torchvision:resnet18@w.pth") == f"torchvision:resnet18@{tmp_path / 'w.pth'}"
