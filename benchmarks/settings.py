"""The papers' nine settings, made here: three models, each retrained on three sets of pictures, and the drill-down of each set.

The sets are the synthetic retina scans and radiographs of examples/, and, as natural images, a piece of one of the photos that
come with scikit-image and scikit-learn somewhere on a texture, classified by the photo. The last layer is retrained
(examples/finetune.py), for want of pretrained weights after a trunk was trained on small crops of scans, radiographs and
photos, one trunk for each model, where a random one is not enough; and if need be the top of the trunk with it. Pictures and
models are kept in the cache folder, and made where they are missing: `python -m benchmarks.settings` makes them all.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from skimage.filters import gaussian

from benchmarks.examples import example
from krypton.cache import cache_folder

MODELS = ("resnet18", "vgg16", "inception_v3")
ENOUGH = 0.85
"""The accuracy on pictures held out from which on a setting counts."""

GRAY = 128
HIDDEN = 4  # of so many pictures with a finding, one has it hidden, and counts as normal: that is what explanations ask for
TRAINING, HELD_OUT, TESTING = 0, 500_000, 700_000  # first seeds
CROP = 96 / 224  # of the height and width, what trunks are trained on
INSET, EDGE = 0.4, 6  # of the height and width, a photo on a texture; pixels that its edge is blurred over
TOPS = {"resnet18": ["layer4"], "inception_v3": ["Mixed_7b", "Mixed_7c"]}
TOP_EPOCHS = 8
"""Trained on whole pictures where the last layer alone is not enough. VGG16's top has too many weights for so few pictures: its
trunk is trained further instead, on crops of the set alone."""
EPOCHS = {"resnet18": 8, "vgg16": 12, "inception_v3": 14}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Set:
    """A set of pictures: how many of each class to train on, and the papers' drill-down (share, speed-up) for it."""

    name: str
    title: str
    drilldown: tuple[float, float]
    classes: Callable[[], tuple[str, ...]]
    draw: Callable[[str, int, int], tuple[Pixels, tuple[int, int, int, int] | None]]
    """(class, seed, size) → picture (size, size, 3), and the box (top, left, height, width) of its finding, if any."""

    training: int = 120
    held_out: int = 40
    crops: int = 120  # of each class, for trunks
    whole: Callable[[str, int, int], tuple[Pixels, tuple[int, int, int, int] | None]] | None = None
    """What crops for trunks are cut from, if not from the pictures themselves."""
    random: bool = True
    """Will a random trunk do if it classifies well? Its maps are rough."""


def _phantom(name: str) -> Callable[[str, int, int], tuple[Pixels, tuple[int, int, int, int] | None]]:
    def draw(kind: str, seed: int, size: int) -> tuple[Pixels, tuple[int, int, int, int] | None]:
        made = example(f"{name}/phantoms").generate(kind, seed, size)
        return np.repeat(made.image[..., None], 3, 2), made.box

    return draw


@cache
def photos() -> dict[str, Pixels]:
    """Natural colour photos (H, W, 3) that come with packages, by name."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    found = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    return found | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


@cache
def textures() -> dict[str, Pixels]:
    """Photos of surfaces (H, W), grey."""
    from skimage import data

    return {name: getattr(data, name)() for name in ("brick", "grass", "gravel")}


def _crop_of_photo(kind: str, seed: int, size: int) -> tuple[Pixels, None]:
    photo, draw = photos()[kind], np.random.default_rng([seed, len(kind)])
    height, width = photo.shape[:2]
    side = int(min(height, width) * draw.uniform(0.5, 0.9))
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    cut = Image.fromarray(photo[top : top + side, left : left + side])
    return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR)), None


def _inset(kind: str, seed: int, size: int) -> tuple[Pixels, tuple[int, int, int, int]]:
    """A piece of a photo somewhere on a texture, its edge blurred: what the class is told by is in one place."""
    draw = np.random.default_rng([seed, len(kind), 1])
    names = sorted(textures())
    texture = textures()[names[draw.integers(len(names))]]
    top, left = (draw.integers(0, length - size + 1) for length in texture.shape)
    tint = draw.uniform(0.6, 1.0, 3)
    side = round(size * INSET)
    down, across = (int(draw.integers(0, size - side + 1)) for _ in range(2))
    box = down, across, side, side
    photo = _cut(_crop_of_photo(kind, seed, size)[0], draw, side, None)
    mask = np.zeros((size, size, 1))
    mask[box[0] + EDGE : box[0] + side - EDGE, box[1] + EDGE : box[1] + side - EDGE] = 1.0
    mask = gaussian(mask, EDGE / 2, channel_axis=2)  # type: ignore[no-untyped-call]
    image = np.repeat(texture[top : top + size, left : left + size, None], 3, 2) * tint
    laid = np.zeros_like(image)
    laid[box[0] : box[0] + side, box[1] : box[1] + side] = photo
    return np.round(image * (1 - mask) + laid * mask).astype(np.uint8), box


SETS = {
    found.name: found
    for found in (
        Set("retina", "OCT", (0.1, 5), lambda: example("retina/phantoms").KINDS, _phantom("retina")),
        Set("xray", "X-ray", (0.4, 2), lambda: example("xray/phantoms").KINDS, _phantom("xray")),
        Set(
            "natural", "ImageNet", (0.25, 3), lambda: tuple(sorted(photos())), _inset, 80, 40, 40, _crop_of_photo, random=False
        ),
    )
}


@dataclass(frozen=True)
class Setting:
    """One of the nine: a model's name and a set's."""

    model: str
    set: str

    @classmethod
    def parse(cls, text: str) -> Setting:
        """`model/set`; raises KeyError for one that there is not."""
        model, _, name = text.partition("/")
        if model not in MODELS or name not in SETS:
            raise KeyError(f"no setting {text!r}: {', '.join(map(str, NINE))}")
        return cls(model, name)

    def __str__(self) -> str:
        return f"{self.model}/{self.set}"

    @property
    def size(self) -> int:
        size: int = example("finetune").SIZES[self.model]
        return size

    def test_images(self, count: int, first: int = 0) -> Iterator[Pixels]:
        """Pictures (size, size, 3) that nothing was trained on: of classes with a finding in turn, or of all where none has."""
        of = SETS[self.set]
        kinds = [kind for kind in of.classes() if kind != "normal"]
        for number in range(first, first + count):
            yield of.draw(kinds[number % len(kinds)], TESTING + number // len(kinds), self.size)[0]


NINE = tuple(Setting(model, name) for name in SETS for model in MODELS)


@dataclass(frozen=True)
class Ready:
    """A setting's model on disk; `start` says where its weights began, `accuracy` is that on pictures held out."""

    path: Path
    names: tuple[str, ...]
    start: str
    accuracy: float


def folder() -> Path:
    return cache_folder() / "benchmarks"


def ready(setting: Setting) -> Ready:
    """The setting's retrained model, made if it is not there yet (minutes)."""
    path = folder() / f"{setting.model}-{setting.set}-{SETS[setting.set].training}.safetensors"
    if not path.exists():
        _retrain(setting, path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    return Ready(path, tuple(about["labels"].split(",")), about["start"], float(about["accuracy"]))


def _retrain(setting: Setting, path: Path) -> None:
    finetune = example("finetune")
    of, size = SETS[setting.set], setting.size
    training = pictures(f"{setting.set}-{size}-{of.training}", size, of, TRAINING, of.training)
    held_out = pictures(f"{setting.set}-{size}-held-out-{of.held_out}", size, of, HELD_OUT, of.held_out)
    found = finetune.retrain(setting.model, training, held_out) if of.random else None
    if found is None or found.accuracy < ENOUGH:
        found = finetune.retrain(setting.model, training, held_out, weights=_trunk(setting.model))
    if found.accuracy < ENOUGH:
        top = TOPS.get(setting.model, [])
        weights = _trunk(setting.model) if top else _trunk_of(setting)
        other = finetune.retrain(setting.model, training, held_out, weights=weights, trunk=top, epochs=TOP_EPOCHS)
        found = max(found, other, key=lambda tried: float(tried.accuracy))
    finetune.save(found, setting.model, path, size)


def _trunk(model: str) -> Path:
    """The weights of a trunk trained on crops of all sets."""
    finetune = example("finetune")
    path = folder() / f"{model}-trunk.safetensors"
    if not path.exists():
        size: int = finetune.SIZES[model]
        training, held_out = (crops(size, first, share) for first, share in ((TRAINING, 1.0), (HELD_OUT, 0.2)))
        parts = ["features"] if model == "vgg16" else ["all"]
        found = finetune.retrain(model, training, held_out, trunk=parts, epochs=EPOCHS[model])
        finetune.save(found, model, path, crop_side(size))
    return path


def _trunk_of(setting: Setting) -> Path:
    """The same trained further on twice as many crops of one set alone."""
    finetune, path = example("finetune"), folder() / f"{setting.model}-{setting.set}-trunk.safetensors"
    if not path.exists():
        size, only = setting.size, [SETS[setting.set]]
        training, held_out = (crops(size, first, share, only) for first, share in ((TRAINING, 2.0), (HELD_OUT, 0.2)))
        weights = _trunk(setting.model)
        found = finetune.retrain(setting.model, training, held_out, weights=weights, trunk=["features"], epochs=TOP_EPOCHS)
        finetune.save(found, setting.model, path, crop_side(size))
    return path


# --- pictures on disk -------------------------------------------------------------------------------------------------


def pictures(name: str, size: int, of: Set, first: int, count: int) -> Any:
    """Whole pictures in folders by class, those with hidden findings among the normal ones."""
    root = folder() / name

    def write(root: Path) -> None:
        for kind in of.classes():
            for number in range(count):
                image, box = of.draw(kind, first + number, size)
                _write(root, kind, f"{number:04}", image)
                if box is not None and number % HIDDEN == 0 and kind != "diffuse":  # that cannot be hidden
                    _write(root, "normal", f"{number:04}-{kind}", _hide(image, box))

    return _read(root, write, size)


def crop_side(size: int) -> int:
    """Of pictures so large: pixels, whole multiples of what trunks divide sizes by."""
    return round(CROP * size / 32) * 32


def crops(size: int, first: int, share: float, sets: Sequence[Set] = tuple(SETS.values())) -> Any:
    """Crops of sets at their own scale, a class for each class of each set; normal ones where others have their finding."""
    side, name = crop_side(size), "" if len(sets) == len(SETS) else "-".join(["", *(of.name for of in sets), f"{share:g}"])

    def write(root: Path) -> None:
        for of in sets:
            for kind in of.classes():
                for number in range(round(share * of.crops)):
                    _cut_crops(root, of, kind, first + number, size, side)

    return _read(folder() / f"crops-{size}-{side}-{first}{name}", write, side)


def _read(root: Path, write: Callable[[Path], None], size: int) -> Any:
    """The pictures in a folder, which is made first if need be, whole or not at all."""
    if not root.exists():
        temporary = root.with_name(f"{root.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        temporary.rename(root)
    return example("finetune").read_folder(root, size)


def _cut_crops(root: Path, of: Set, kind: str, seed: int, size: int, side: int) -> None:
    image, box = (of.whole or of.draw)(kind, seed, size)
    draw = np.random.default_rng([seed, 7])
    if box is None:
        if kind != "normal":
            _write(root, f"{of.name}-{kind}", f"{seed}", _cut(image, draw, side, None))
        return
    crop = _cut(image, draw, side, box)
    _write(root, f"{of.name}-{kind}", f"{seed}", crop)
    same = np.random.default_rng([seed, 7])  # so that both are cut at the same place
    hidden = _hide(image, box) if seed % HIDDEN == 0 and kind != "diffuse" else of.draw("normal", seed, size)[0]
    _write(root, f"{of.name}-normal", f"{seed}-{kind}", _cut(hidden, same, side, box))


def _cut(image: Pixels, draw: np.random.Generator, side: int, box: tuple[int, int, int, int] | None) -> Pixels:
    """A square with as much of the box in it as fits, or from anywhere."""
    places = []
    for axis, length in enumerate(image.shape[:2]):
        start, extent = (box[axis], box[axis + 2]) if box is not None else (0, length)
        low, high = sorted((start, start + extent - side))
        places.append(int(np.clip(draw.integers(low, high + 1), 0, length - side)))
    return image[places[0] : places[0] + side, places[1] : places[1] + side]


def _hide(image: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    top, left, height, width = box
    hidden = image.copy()
    hidden[max(top - 2, 0) : top + height + 2, max(left - 2, 0) : left + width + 2] = GRAY
    return hidden


def _write(root: Path, kind: str, name: str, image: Pixels) -> None:
    target = root / kind
    target.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(target / f"{name}.png", compress_level=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("settings", nargs="*", type=Setting.parse, default=list(NINE), help="as model/set (default: all)")
    console = Console(width=160)
    for setting in parser.parse_args().settings:
        found = ready(setting)
        counts = "" if found.accuracy >= ENOUGH else ": does not count"
        console.print(f"{setting}: {found.accuracy:.1%} held out{counts}; weights began: {found.start}", highlight=False)


if __name__ == "__main__":
    main()
