"""Retrain a torchvision model on a folder of pictures, as the papers' Appendix B does: its last layer, and more if need be.

The folder has a subfolder for every class, of that name. Trained weights are taken where they are on this computer, in
torchvision's folder or in a file; nothing is downloaded. Without them the trunk is random, each layer scaled on the pictures
so that signals neither die nor explode, and that is said. Features are computed once, and a linear layer is fitted to them.

    python examples/finetune.py scans --model resnet18 --out lungs.safetensors
    python examples/finetune.py scans --model resnet18 --trunk layer4
    krypton -c "EXPLAIN OCCLUSION OF 'scan.png' USING MODEL 'lungs.safetensors' INTO 'heat.png'"
"""

from __future__ import annotations

import argparse
import copy
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

SIZES = {"vgg16": 224, "resnet18": 224, "inception_v3": 299}
"""The models that can be retrained, and the height and width of their input in pixels."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Subtracted from pixels of 0 … 1, and divided by."""

GRAY = 128 / 255  # what explanations hide pixels with
HELD_OUT = 5  # every so manyth picture of a class, where no folder holds others
SMOOTHING = 0.1  # of labels: probabilities stay away from 1, so that maps keep their range
RIDGE = 1e-3
BATCH = 32
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Pictures:
    """`images`: uint8 (N, 3, H, W); `labels`: int64 (N,), indices into the class `names`."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def of(self, rows: Tensor) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows], self.names)


@dataclass(frozen=True)
class Retrained:
    """A model in eval mode, float32; `start` says where its weights began, `accuracy` is that on pictures held out."""

    module: nn.Module
    names: tuple[str, ...]
    start: str
    accuracy: float


# --- pictures ---------------------------------------------------------------------------------------------------------


def read_folder(folder: Path, size: int) -> Pictures:
    """The pictures in the subfolders, resized as a whole; raises ValueError where there are fewer than two classes."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    files = [
        (file, label) for label, kind in enumerate(kinds) for file in sorted(kind.iterdir()) if file.suffix.lower() in SUFFIXES
    ]
    if len({label for _, label in files}) < 2 or len({label for _, label in files}) < len(kinds):
        raise ValueError(f"'{folder}' must have two subfolders or more, one for every class, each with pictures")
    return Pictures(
        torch.stack([_read(file, size) for file, _ in files]),
        torch.tensor([label for _, label in files]),
        tuple(kind.name for kind in kinds),
    )


def _read(file: Path, size: int) -> Tensor:
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def split(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """Those to train on, and of every class each fifth, held out; raises ValueError for classes of fewer than five."""
    order = torch.stack([(pictures.labels[:place] == label).sum() for place, label in enumerate(pictures.labels)])
    held_out = order % HELD_OUT == HELD_OUT - 1
    if len(pictures.labels[held_out].unique()) < len(pictures.names):
        raise ValueError(f"every class needs {HELD_OUT} pictures or more: one of {HELD_OUT} is held out")
    return pictures.of(~held_out), pictures.of(held_out)


def normalised(images: Tensor) -> Tensor:
    """The model's input from uint8 images (N, 3, H, W)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def disturbed(images: Tensor, seed: int) -> Tensor:
    """The images mirrored, brightened and hidden by a gray patch, at random: a patch shall be nothing new to the model."""
    draw = np.random.default_rng(seed)
    changed = images.clone()
    size = images.shape[-1]
    for image in changed:
        if draw.random() < 0.5:
            image.copy_(image.flip(-1))
        image.copy_((image * draw.uniform(0.9, 1.1) + draw.uniform(-10, 10)).clamp(0, 255).to(torch.uint8))
        if draw.random() < 0.5:
            height, width = draw.integers(size // 14, size // 7, 2)
            top, left = draw.integers(0, size - height), draw.integers(0, size - width)
            image[:, top : top + height, left : left + width] = round(255 * GRAY)
    return changed


# --- where weights begin ----------------------------------------------------------------------------------------------


def begin(name: str, classes: int, weights: Path | None, images: Tensor) -> tuple[nn.Module, str]:
    """The model with a new last layer, and where its weights come from; a random trunk is calibrated on `images`."""
    module, source = _with_weights(name, weights)
    if module is None:
        module, source = _build(name), "random, calibrated on the pictures"
        if isinstance(module, torchvision.models.VGG):
            _same_at_all_places(module.classifier[0], module.features)
        calibrate(module, normalised(images[:: max(1, len(images) // BATCH)][:BATCH]))
    replace_last(module, classes)
    return module.eval().to(memory_format=torch.channels_last), source


def _build(name: str) -> nn.Module:
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "inception_v3" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about how it initialises
        module: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return module


def own_weights(name: str) -> Path | None:
    """The file of torchvision's weights of a model, if it is on this computer."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next((folder / file for file in _files(name) if (folder / file).is_file()), None)


def _files(name: str) -> dict[str, Any]:
    """The names of the files of torchvision's weights of a model, and the members of the weight enum that they are of."""
    return {PurePosixPath(urlparse(member.url).path).name: member for member in torchvision.models.get_model_weights(name)}


def _with_weights(name: str, weights: Path | None) -> tuple[nn.Module | None, str]:
    """The model with the weights of a file, or else torchvision's if their file is on this computer, or else None."""
    own = _files(name)
    file = weights or own_weights(name)
    if file is None:
        return None, ""
    state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True, map_location="cpu")
    module = _fitted(name, state)
    if file.name in own and isinstance(module, torchvision.models.Inception3):
        _normalise_as_others(module)
    return module, f"torchvision's {own[file.name]}" if file.name in own else f"file {file.name}"


@torch.no_grad()
def _normalise_as_others(module: torchvision.models.Inception3) -> None:
    """torchvision's weights were trained on pixels of -1 … 1: the first convolution, which has no padding, does the rest."""
    first = module.Conv2d_1a_3x3
    middle = (torch.tensor(MEAN) - 0.5) / 0.5
    first.bn.running_mean -= first.conv.weight.sum((2, 3)) @ middle
    first.conv.weight *= (torch.tensor(STD) / 0.5)[:, None, None]


def _fitted(name: str, state: dict[str, Tensor]) -> nn.Module:
    """A model with this state but for the last layer, which is replaced anyway, and auxiliary ones, which are not needed."""
    module = _build(name)
    own = module.state_dict()
    kept = {key: tensor for key, tensor in state.items() if not key.startswith("AuxLogits.")}
    last = {key for key in own if own[key].shape != kept.get(key, own[key]).shape}
    if not last <= {f"{_last_name(module)}.weight", f"{_last_name(module)}.bias"}:
        raise ValueError(f"the weights are not those of {name}: other shapes of {', '.join(sorted(last))}")
    module.load_state_dict(kept | {key: own[key] for key in last})
    return module


@torch.no_grad()
def calibrate(module: nn.Module, inputs: Tensor) -> None:
    """Give every channel of every layer mean 0 and variance 1 over the inputs: by the statistics of its batch norms, or, where
    there are none, by weight and bias of its convolutions and hidden linear layers."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, of which there is one
        norm.train()
    layers = [] if norms else [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))][:-1]
    hooks = [layer.register_forward_hook(_standardise) for layer in layers]
    module(inputs)
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _standardise(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A hook that changes a layer, and its output accordingly."""
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    assert layer.bias is not None
    spread, middle = torch.std_mean(output, [axis for axis in range(output.dim()) if axis != 1])
    spread = spread.clamp(min=1e-6)
    layer.weight /= spread.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.copy_((layer.bias - middle) / spread)
    shape = (1, -1, *[1] * (output.dim() - 2))
    return (output - middle.view(shape)) / spread.view(shape)


@torch.no_grad()
def _same_at_all_places(linear: nn.Linear, features: nn.Module) -> None:
    """Weights of a random linear layer on a flattened map that do not depend on the place: a few hundred pictures could not
    teach the last layer that a thing is the same wherever it is."""
    channels = [part.out_channels for part in features.modules() if isinstance(part, nn.Conv2d)][-1]
    by_place = linear.weight.view(linear.out_features, channels, -1)
    by_place.copy_(by_place[..., :1].expand_as(by_place).clone())


def _last_name(module: nn.Module) -> str:
    return [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]


def last_layer(module: nn.Module) -> nn.Linear:
    """The linear layer that gives the logits."""
    found = module.get_submodule(_last_name(module))
    assert isinstance(found, nn.Linear)
    return found


def replace_last(module: nn.Module, classes: int) -> None:
    """Put a new last layer in, for so many classes."""
    parent, _, name = _last_name(module).rpartition(".")
    setattr(module.get_submodule(parent), name, nn.Linear(last_layer(module).in_features, classes))


# --- training ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def features(module: nn.Module, images: Tensor) -> Tensor:
    """What the last layer reads (N, in_features)."""
    found: list[Tensor] = []
    hook = last_layer(module).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    for batch in images.split(BATCH):
        module(normalised(batch))
    hook.remove()
    return torch.cat(found)


def fit(layer: nn.Linear, inputs: Tensor, labels: Tensor) -> None:
    """Multinomial logistic regression with a ridge on standardised inputs (N, in_features), by L-BFGS, into the layer."""
    spread, middle = torch.std_mean(inputs, 0)
    spread = spread.clamp(min=1e-3 * float(spread.mean()) + 1e-12)
    standard = (inputs - middle) / spread
    weight = torch.zeros_like(layer.weight, requires_grad=True)
    bias = torch.zeros_like(layer.bias, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(standard @ weight.T + bias, labels, label_smoothing=SMOOTHING) + RIDGE * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)
    with torch.no_grad():
        layer.weight.copy_(weight / spread)
        layer.bias.copy_(bias - layer.weight @ middle)


def train_trunk(module: nn.Module, pictures: Pictures, parts: Sequence[str], epochs: int, seed: int) -> None:
    """Train the submodules of those names (`all`: everything) and the last layer, in bfloat16 where the computer has it."""
    inside = {name for name, _ in module.named_parameters() if "all" in parts or name.startswith(tuple(f"{p}." for p in parts))}
    trained = [*(p for n, p in module.named_parameters() if n in inside), *last_layer(module).parameters()]
    norms = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    for name, norm in norms:
        norm.train(f"{name}.weight" in inside)
    rate = 2e-3 if norms else 3e-4
    optimizer = torch.optim.AdamW(list({id(p): p for p in trained}.values()), rate, weight_decay=0.02)
    steps = max(1, len(pictures.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        started, total = time.perf_counter(), 0.0
        for number, rows in enumerate(_batches(len(pictures.labels), steps, seed + epoch)):
            inputs = normalised(disturbed(pictures.images[rows], seed + epoch * steps + number))
            with torch.autocast("cpu", torch.bfloat16):
                logits = module(inputs)
            loss = cross_entropy(logits.float(), pictures.labels[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1:2}/{epochs}  loss {total / steps:.3f}  {time.perf_counter() - started:.0f} s", flush=True)
    module.eval().requires_grad_(False)


def _batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return iter(order.chunk(steps))


@torch.no_grad()
def accuracy(module: nn.Module, pictures: Pictures) -> float:
    """The share of pictures whose class is found."""
    found = torch.cat([module(normalised(batch)).argmax(1) for batch in pictures.images.split(BATCH)])
    return float((found == pictures.labels).float().mean())


def retrain(
    name: str,
    pictures: Pictures,
    held_out: Pictures,
    *,
    weights: Path | None = None,
    trunk: Sequence[str] = (),
    epochs: int = 8,
    seed: int = 0,
) -> Retrained:
    """The model retrained: its last layer, after the parts of it that `trunk` names (`all`: everything)."""
    torch.manual_seed(seed)
    module, start = begin(name, len(pictures.names), weights, pictures.images)
    if trunk:
        train_trunk(module, pictures, trunk, epochs, seed)
    fit(last_layer(module), features(module, disturbed(pictures.images, seed)), pictures.labels)
    module = copy.deepcopy(module).to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return Retrained(module, pictures.names, start, accuracy(module, held_out))


def save(retrained: Retrained, name: str, path: Path, size: int) -> None:
    """Weights as Krypton's models read them, whole or not at all."""
    metadata = {
        "architecture": name,
        "labels": ",".join(retrained.names),
        "start": retrained.start,
        "accuracy": f"{retrained.accuracy:.4f}",
        "size": str(size),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file({key: tensor.contiguous() for key, tensor in retrained.module.state_dict().items()}, temporary, metadata)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def main() -> None:
    """Read, retrain, measure on pictures held out, and save."""
    parser = argparse.ArgumentParser(description="Retrain the last layer of a model on a folder of pictures.")
    parser.add_argument("folder", type=Path, help="with a subfolder of pictures for every class")
    parser.add_argument("--held-out", type=Path, help="another such folder to measure on (default: each fifth picture)")
    parser.add_argument("--model", choices=SIZES, default="resnet18")
    parser.add_argument("--weights", type=Path, help="a state dict to begin with, .pth or .safetensors")
    parser.add_argument("--trunk", nargs="*", default=[], metavar="PART", help="submodules to train first (all: everything)")
    parser.add_argument("--epochs", type=int, default=8, help="of the trunk's training")
    parser.add_argument("--size", type=int, help="height and width of the input in pixels (default: the model's usual one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("retrained.safetensors"))
    arguments = parser.parse_args()
    size = arguments.size or SIZES[arguments.model]
    try:
        pictures = read_folder(arguments.folder, size)
        training, held_out = (pictures, read_folder(arguments.held_out, size)) if arguments.held_out else split(pictures)
        found = retrain(
            arguments.model,
            training,
            held_out,
            weights=arguments.weights,
            trunk=arguments.trunk,
            epochs=arguments.epochs,
            seed=arguments.seed,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    save(found, arguments.model, arguments.out, size)
    labels = arguments.out.with_suffix(".txt")
    labels.write_text("".join(f"{name}\n" for name in found.names))
    print(f"weights began: {found.start}")
    print(f"accuracy on {len(held_out.labels)} pictures held out: {found.accuracy:.1%}")
    print(f"CREATE MODEL retrained FROM '{arguments.out}' INPUT 3x{size}x{size} LABELS '{labels}'")


if __name__ == "__main__":
    main()
