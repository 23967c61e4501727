"""Heatmap: everything derived from the logits, against brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from krypton.errors import BindError, ExecutionError
from krypton.results import Heatmap

Make = Callable[..., Heatmap]


def brute_force_per_pixel(heatmap: Heatmap, covers: torch.Tensor) -> np.ndarray:
    """`covers` is bool (n, H, W), one per position."""
    drops = torch.from_numpy(heatmap.drop()).flatten().double()
    expected = np.full(heatmap.image_size, np.nan, dtype=np.float64)
    for y in range(heatmap.image_size[0]):
        for x in range(heatmap.image_size[1]):
            chosen = covers[:, y, x] & heatmap.known.flatten()
            if chosen.any():
                expected[y, x] = drops[chosen].mean()
    return expected


def cover(heatmap: Heatmap) -> torch.Tensor:
    boxes = heatmap.positions.reshape(-1, 4).tolist()
    covers = torch.zeros(len(boxes), *heatmap.image_size, dtype=torch.bool)
    for index, (top, left, height, width) in enumerate(boxes):
        covers[index, top : top + height, left : left + width] = True
    return covers


def test_the_map_is_the_score_and_the_drop_is_what_it_lost(make_heatmap: Make) -> None:
    heatmap = make_heatmap(target=1)
    assert heatmap.heatmap.dtype == heatmap.drop().dtype == np.float32
    np.testing.assert_allclose(heatmap.heatmap, heatmap.logits.softmax(-1)[..., 1], rtol=1e-6)
    assert heatmap.base_score == pytest.approx(heatmap.base_logits.softmax(-1)[1].item())
    np.testing.assert_allclose(heatmap.drop(), heatmap.base_score - heatmap.heatmap, atol=1e-6)


def test_changing_the_array_does_not_change_the_map(make_heatmap: Make) -> None:
    heatmap = make_heatmap()
    before = heatmap.heatmap
    heatmap.heatmap[:] = 0
    assert np.array_equal(heatmap.heatmap, before)


@pytest.mark.parametrize(("patch", "stride"), [((6, 8), (3, 4)), ((5, 3), (7, 9)), ((24, 32), (1, 1)), ((2, 2), (5, 2))])
def test_per_pixel_is_the_mean_over_the_patches_that_cover(
    patch: tuple[int, int], stride: tuple[int, int], make_heatmap: Make
) -> None:
    heatmap = make_heatmap(patch=patch, stride=stride)
    found = heatmap.per_pixel()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, brute_force_per_pixel(heatmap, cover(heatmap)), atol=1e-6)


def test_per_pixel_leaves_unknown_positions_out(make_heatmap: Make) -> None:
    known = torch.rand(7, 7, generator=torch.Generator().manual_seed(0)) < 0.3
    heatmap = make_heatmap(known=known)
    found = heatmap.per_pixel()
    assert np.isnan(found).any()
    np.testing.assert_allclose(found, brute_force_per_pixel(heatmap, cover(heatmap)), atol=1e-6)


def test_per_pixel_of_masks_is_the_mean_over_those_that_cover(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    many = overlapping_masks.repeat(20, 1, 1)  # more than are summed at a time
    known = torch.ones(len(many), dtype=torch.bool)
    known[4::5] = False  # one kind is unknown everywhere
    heatmap = make_heatmap(masks=many, known=known)
    assert heatmap.heatmap.shape == (100,)
    found = heatmap.per_pixel()
    assert np.isnan(found[20, 2])
    np.testing.assert_allclose(found, brute_force_per_pixel(heatmap, many), atol=1e-6)


def test_another_class_or_score_is_another_view_of_the_same_logits(make_heatmap: Make) -> None:
    heatmap = make_heatmap(labels=("cat", "Dog", "lion"))
    dog = heatmap.for_class("dog")
    assert (dog.target, dog.label) == (1, "Dog")
    assert dog.logits is heatmap.logits
    np.testing.assert_allclose(dog.heatmap, heatmap.logits.softmax(-1)[..., 1], rtol=1e-6)
    np.testing.assert_array_equal(dog.with_score("LOGIT").heatmap, heatmap.logits[..., 1])
    assert dog.with_score("logit").for_class(2).score_kind == "logit"
    with pytest.raises(BindError, match=r'unknown score "lgit"\..*Did you mean "logit"'):
        heatmap.with_score("lgit")


def test_classes_that_do_not_exist_are_refused_in_words(make_heatmap: Make) -> None:
    heatmap = make_heatmap(labels=("cat", "crane", "crane"))
    with pytest.raises(BindError, match=r'unknown class "cta"\..*Did you mean "cat"'):
        heatmap.for_class("cta")
    with pytest.raises(BindError, match="'crane' names classes 1, 2: give the index"):
        heatmap.for_class("crane")
    for index in (3, -1):
        with pytest.raises(BindError, match=f"class {index} does not exist: the model's classes are 0 to 2"):
            heatmap.for_class(index)
    with pytest.raises(BindError, match="no labels: give an index from 0 to 2"):
        make_heatmap().for_class("cat")


def test_an_exact_label_wins_over_one_in_another_case(make_heatmap: Make) -> None:
    assert make_heatmap(labels=("Polish", "polish", "x")).for_class("polish").target == 1


def test_the_best_classes_come_best_first(make_heatmap: Make) -> None:
    heatmap = make_heatmap(base_logits=torch.tensor([0.0, 2.0, 1.0]))
    assert heatmap.predicted == 1
    assert [each.target for each in heatmap.top(2)] == [1, 2]
    assert [each.target for each in heatmap.top(99)] == [1, 2, 0]
    with pytest.raises(BindError, match="at least 1"):
        heatmap.top(0)


def test_labels_say_what_a_class_is_even_without_names(make_heatmap: Make) -> None:
    assert make_heatmap(target=2).label == "class 2"
    assert make_heatmap(classes=1).label == "output"
    assert make_heatmap(classes=1).predicted == 0


def test_the_most_sensitive_position_has_the_greatest_drop(make_heatmap: Make) -> None:
    heatmap = make_heatmap()
    row, column = divmod(int(heatmap.drop().argmax()), 7)
    assert heatmap.most_sensitive == (3 * row, 4 * column, 6, 8)
    known = torch.ones(7, 7, dtype=torch.bool)
    known[row, column] = False
    assert make_heatmap(known=known).most_sensitive != heatmap.most_sensitive
    with pytest.raises(ExecutionError, match="no position"):
        _ = make_heatmap(known=torch.zeros(7, 7, dtype=torch.bool)).most_sensitive


def test_a_map_says_in_one_line_what_it_is(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    heatmap = make_heatmap(labels=("cat", "dog", "lion"))
    top, left, height, width = heatmap.most_sensitive
    assert repr(heatmap) == (
        f"Heatmap(7×7 positions, 'cat', probability {heatmap.base_score:.4g}, "
        f"drops by up to {heatmap.drop().max():.4g} at ({top}, {left}, {height}, {width}))"
    )
    known = torch.zeros(7, 7, dtype=torch.bool)
    assert repr(make_heatmap(known=known)).endswith("0 of 49 known)")
    assert not make_heatmap(known=known).complete
    assert repr(make_heatmap(masks=overlapping_masks)).startswith("Heatmap(5 masks, 'class 0'")
