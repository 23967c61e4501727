"""Models whose layers look at whole maps, trained here: what `freeze` is measured on.

ResNet18 with squeeze-and-excitation blocks, ResNet18 with group norms in place of batch norms, and EfficientNet B0. Trunks are
trained from scratch on the crops that those of the papers' settings are trained on, the last layer then on whole retina scans.
They are kept in the cache folder: `python -m benchmarks.gated` makes them all (some minutes each).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from benchmarks.examples import example
from benchmarks.settings import ENOUGH, HELD_OUT, SETS, TESTING, TRAINING, Pixels, crops, folder, pictures

SIZE = 224
EPOCHS = 16
SCANS = SETS["retina"]


def _group_norms() -> nn.Module:
    module: nn.Module = torchvision.models.resnet18(norm_layer=partial(nn.GroupNorm, 32))
    return module


def _excitations() -> nn.Module:
    module: nn.Module = timm.create_model("seresnet18", pretrained=False)
    return module


BUILT: dict[str, Callable[[], nn.Module]] = {
    "seresnet18": _excitations,
    "resnet18_gn": _group_norms,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
}

SETTINGS = tuple(f"{name}/scans" for name in BUILT)
"""Their names as settings of `benchmarks.approximate`."""

PREPROCESSING = {"input_shape": (3, SIZE, SIZE), "mean": example("finetune").MEAN, "std": example("finetune").STD}


@dataclass(frozen=True)
class Trained:
    """A model in eval mode; `accuracy` is that on scans held out."""

    module: nn.Module
    names: tuple[str, ...]
    accuracy: float


def trained(name: str) -> Trained:
    """The model of that name, trained if it was not yet."""
    path = folder() / f"{name}-scans.safetensors"
    if not path.exists():
        _train(name, path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    names = tuple(about["labels"].split(","))
    module = BUILT[name]()
    example("finetune").replace_last(module, len(names))
    module.load_state_dict(load_file(path))
    return Trained(module.eval().requires_grad_(False), names, float(about["accuracy"]))


def unseen(count: int, first: int) -> Iterator[Pixels]:
    """Scans (SIZE, SIZE, 3) with a lesion that nothing was trained on, the kinds in turn."""
    kinds = [kind for kind in SCANS.classes() if kind != "normal"]
    for number in range(first, first + count):
        yield SCANS.draw(kinds[number % len(kinds)], TESTING + number // len(kinds), SIZE)[0]


def _train(name: str, path: Path) -> None:
    finetune, parts = example("finetune"), crops(SIZE, TRAINING, 1.0)
    torch.manual_seed(0)
    module = BUILT[name]().eval().to(memory_format=torch.channels_last)
    finetune.replace_last(module, len(parts.names))
    finetune.train_trunk(module, parts, ["all"], EPOCHS, 0)
    training = pictures(f"retina-{SIZE}-{SCANS.training}", SIZE, SCANS, TRAINING, SCANS.training)
    held_out = pictures(f"retina-{SIZE}-held-out-{SCANS.held_out}", SIZE, SCANS, HELD_OUT, SCANS.held_out)
    finetune.replace_last(module, len(training.names))
    scans = finetune.disturbed(training.images, 0)
    finetune.fit(finetune.last_layer(module), finetune.features(module, scans), training.labels)
    finetune.save(finetune.Retrained(module, training.names, "random", finetune.accuracy(module, held_out)), name, path, SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(BUILT), metavar="MODEL", help=", ".join(BUILT))
    console = Console(width=160)
    for name in parser.parse_args().models:
        found = trained(name)
        counts = "" if found.accuracy >= ENOUGH else ": does not count"
        console.print(f"{name}: {found.accuracy:.1%} held out{counts}", highlight=False)


if __name__ == "__main__":
    main()
