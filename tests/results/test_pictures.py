"""Pictures: the colours of the papers, and a map drawn where it belongs."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from krypton.images import Preprocessing, load_image
from krypton.results import Heatmap
from krypton.results.pictures import Scale, colourise, overlay_figure, paint, png, render, scale_of

Make = Callable[..., Heatmap]


def test_probabilities_range_around_the_base_and_never_beyond_one(make_heatmap: Make) -> None:
    heatmap = make_heatmap(base_logits=torch.tensor([0.0, 0.0, 0.0]))
    assert (scale_of(heatmap).low, scale_of(heatmap).high) == pytest.approx((0.25, 1.25 / 3))
    sure = make_heatmap(base_logits=torch.tensor([50.0, 0.0, 0.0]))
    assert (scale_of(sure).low, scale_of(sure).high) == pytest.approx((0.75, 1))


@pytest.mark.parametrize("fields", [{"score_kind": "logit"}, {"score_kind": "margin"}, {"activation": "none"}])
def test_other_scores_are_symmetric_around_the_base(fields: dict[str, str], make_heatmap: Make) -> None:
    heatmap = make_heatmap(**fields)
    scale = scale_of(heatmap)
    assert (scale.low + scale.high) / 2 == pytest.approx(heatmap.base_score, abs=1e-6)
    assert (scale.high - scale.low) / 2 == pytest.approx(np.abs(heatmap.drop()).max(), rel=1e-5)


def test_low_scores_are_red_high_ones_blue_and_unknown_ones_gray() -> None:
    red, middle, blue, clipped, unknown = colourise(np.array([0, 0.5, 1, -3, np.nan], dtype=np.float32), Scale(0, 1)).tolist()
    assert red[0] > 100
    assert red[1:] == [0, 0]
    assert middle[1] > 200
    assert blue[2] > 100
    assert blue[:2] == [0, 0]
    assert clipped == red
    assert len(set(unknown)) == 1


def test_the_bare_map_has_a_cell_per_position(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    known = torch.ones(7, 7, dtype=torch.bool)
    known[2, 3] = False
    picture = render(make_heatmap(known=known))
    assert picture.shape == (7, 7, 3)
    assert picture.dtype == np.uint8
    assert picture[2, 3].tolist() == [160, 160, 160]
    assert render(make_heatmap(masks=overlapping_masks)).shape == (24, 32, 3)


def test_cells_are_painted_around_the_centres_of_their_patches(make_heatmap: Make) -> None:
    heatmap = make_heatmap()  # patch 6×8, stride 3×4: the first centre is at (3, 4), cells are 3×4
    painted, inside = paint(heatmap)
    for row in range(7):
        for column in range(7):
            centre = painted[3 + 3 * row, 4 + 4 * column]
            assert centre == heatmap.heatmap[row, column]
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert (columns[0], columns[-1]) == (2, 29)
    assert (rows[0], rows[-1]) in ((1, 21), (2, 22))
    assert np.isnan(painted[~inside]).all()
    assert not np.isnan(painted[inside]).any()


def test_a_map_of_one_position_fills_its_patch(make_heatmap: Make) -> None:
    painted, inside = paint(make_heatmap(patch=(24, 20), stride=(1, 100)))
    assert inside[:, :20].all()
    assert not inside[:, 20:].any()
    assert len(np.unique(painted[inside])) == 1


def test_masks_are_painted_with_the_mean_where_they_overlap(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    heatmap = make_heatmap(masks=overlapping_masks)
    painted, inside = paint(heatmap)
    assert np.array_equal(inside, overlapping_masks.any(0).numpy())
    scores = heatmap.heatmap
    assert painted[0, 1] == pytest.approx(scores[0], abs=1e-6)
    assert painted[6, 6] == pytest.approx((scores[0] + scores[1]) / 2, abs=1e-6)


@pytest.mark.parametrize("size", [(24, 32), (300, 20), (20, 300), (8, 8)])
def test_figures_of_any_shape_are_drawn_without_warnings(size: tuple[int, int], make_heatmap: Make) -> None:
    picture = Image.open(io.BytesIO(png(make_heatmap(size=size))))
    assert picture.format == "PNG"
    assert max(picture.size) < 3000
    assert min(picture.size) > 200


def test_what_is_half_done_or_oddly_named_can_be_drawn(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    nothing = torch.zeros(7, 7, dtype=torch.bool)
    labels = ("猫 with $x_ and \\frac and a name that is much too long for a title in any picture", "b", "c")
    for heatmap in (
        make_heatmap(known=nothing, labels=labels),
        make_heatmap(known=nothing, score_kind="logit"),
        make_heatmap(masks=overlapping_masks, score_kind="margin"),
        make_heatmap(base_logits=torch.tensor([-1e6, 0.0, 0.0])),
        make_heatmap(classes=1),
    ):
        assert png(heatmap).startswith(b"\x89PNG")


def test_images_of_any_channels_can_be_shown(make_heatmap: Make) -> None:
    for channels in (1, 2, 3):
        preprocessing = Preprocessing(channels, 24, 32, (0.0,) * channels, (1.0,) * channels)
        for tensor in (torch.randn(channels, 24, 32) * 9, torch.zeros(channels, 24, 32)):
            image = load_image(tensor, preprocessing, max_pixels=10_000)
            assert png(replace(make_heatmap(), image=image)).startswith(b"\x89PNG")


def test_the_figure_marks_the_most_sensitive_position(make_heatmap: Make) -> None:
    heatmap = make_heatmap()
    top, left, height, width = heatmap.most_sensitive
    figure = overlay_figure(heatmap)
    marks = {tuple(patch.get_bbox().bounds) for patch in figure.axes[1].patches}
    assert marks == {(left - 0.5, top - 0.5, width, height)}


def test_plot_draws_into_given_axes_and_leaves_pyplot_alone(make_heatmap: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # whoever imports it now, fails
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(1, 2)
    assert make_heatmap(labels=("cat", "b", "c")).plot(axes[1]) is figure
    assert "'cat'" in axes[1].get_title()
    assert not axes[0].images
    assert len(make_heatmap().plot().axes) == 2
    make_heatmap()._repr_png_()
