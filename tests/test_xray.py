"""The synthetic radiographs: one seed, one chest; opacities that are where the box says."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from benchmarks.examples import example

SEEDS = range(12)


@pytest.fixture(scope="module")
def phantoms() -> ModuleType:
    return example("xray/phantoms")


def change(phantoms: ModuleType, kind: str, seed: int) -> np.ndarray:
    """What the opacity adds to the picture of the same chest without it."""
    pictures = [phantoms.generate(name, seed).image.astype(int) for name in (kind, "normal")]
    return pictures[0] - pictures[1]


def test_pictures_depend_on_kind_seed_and_size_alone(phantoms: ModuleType) -> None:
    one, same, other = (phantoms.generate("focal", seed, 96) for seed in (3, 3, 4))
    assert one.image.shape == (96, 96)
    assert one.image.dtype == np.uint8
    assert (one.image == same.image).all()
    assert one.box == same.box
    assert (one.image != other.image).mean() > 0.5


def test_normal_lungs_have_no_box_and_others_one_inside_the_picture(phantoms: ModuleType) -> None:
    assert all(phantoms.generate("normal", seed).box is None for seed in SEEDS)
    for kind in ("diffuse", "focal"):
        for seed in SEEDS:
            top, left, height, width = phantoms.generate(kind, seed).box
            assert min(top, left) >= 0
            assert min(height, width) >= 4
            assert max(top + height, left + width) <= 160


@pytest.mark.parametrize("kind", ["diffuse", "focal"])
def test_opacities_lie_within_the_box(phantoms: ModuleType, kind: str) -> None:
    for seed in SEEDS:
        top, left, height, width = phantoms.generate(kind, seed).box
        added = np.abs(change(phantoms, kind, seed))
        added[added <= 3] = 0  # less is noise, which there is more of where the film is darker
        margin = 4
        inside = added[max(top - margin, 0) : top + height + margin, max(left - margin, 0) : left + width + margin]
        assert inside.sum() > 0.9 * added.sum()


@pytest.mark.parametrize(("kind", "levels"), [("diffuse", 8), ("focal", 15)])
def test_opacities_can_be_seen(phantoms: ModuleType, kind: str, levels: int) -> None:
    for seed in SEEDS:
        top, left, height, width = phantoms.generate(kind, seed).box
        assert change(phantoms, kind, seed)[top : top + height, left : left + width].mean() > levels


def test_a_focal_opacity_is_in_one_lung_and_a_diffuse_one_in_both(phantoms: ModuleType) -> None:
    for seed in SEEDS:
        _, left, _, width = phantoms.generate("focal", seed).box
        assert left + width <= 88 or left >= 72
        _, left, _, width = phantoms.generate("diffuse", seed).box
        assert left < 72 < 88 < left + width


def test_lungs_are_darker_than_what_surrounds_them(phantoms: ModuleType) -> None:
    for seed in SEEDS:
        image = phantoms.generate("normal", seed).image.astype(int)
        middle, heart = image[60:80, 76:84].mean(), image[105:120, 80:90].mean()
        lungs = np.minimum(image[60:80, 35:60].mean(), image[60:80, 100:125].mean())
        assert lungs + 40 < min(middle, heart)


@pytest.mark.parametrize(("arguments", "message"), [(("broken", 0), "one of normal"), (("focal", 0, 32), "at least 64")])
def test_what_cannot_be_drawn_is_refused(phantoms: ModuleType, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        phantoms.generate(*arguments)
