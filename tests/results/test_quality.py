"""Quality: each number against its definition, on maps whose difference is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from skimage.metrics import structural_similarity

from krypton.errors import BindError
from krypton.results import Heatmap, HeldOut, compare

Make = Callable[..., Heatmap]


def logits_map(make: Make, scores: torch.Tensor) -> Heatmap:
    """A map whose score is its single logit, with a base of 0."""
    fields = {"classes": 1, "score_kind": "logit", "base_logits": torch.zeros(1), "stride": (1, 1)}
    size = (scores.shape[0] + 1, scores.shape[1] + 1)
    return make(size=size, patch=(2, 2), logits=scores[..., None], **fields)


def test_equal_maps_agree_in_everything(make_heatmap: Make) -> None:
    quality = compare(make_heatmap(), make_heatmap())
    assert quality.ssim == pytest.approx(1)
    assert quality.relative_rmse == 0
    assert quality.spearman == pytest.approx(1)
    assert quality.top10_overlap == 1
    drop = make_heatmap().drop()
    assert quality.exact_range == pytest.approx(drop.max() - drop.min())


def test_a_shift_is_seen_by_rmse_and_ssim_but_not_by_ranks(make_heatmap: Make) -> None:
    exact = torch.linspace(0, 1, 80).view(8, 10)
    quality = compare(logits_map(make_heatmap, exact + 0.25), logits_map(make_heatmap, exact))
    assert quality.relative_rmse == pytest.approx(0.25, rel=1e-5)
    assert quality.spearman == pytest.approx(1)
    assert quality.top10_overlap == 1
    assert quality.ssim is not None
    assert quality.ssim < 0.99


def test_spearman_is_the_correlation_of_ranks(make_heatmap: Make) -> None:
    exact, approximate = make_heatmap(seed=0), make_heatmap(seed=1)
    approximate = replace(approximate, base_logits=exact.base_logits)
    expected = np.corrcoef(rankdata(approximate.drop()), rankdata(exact.drop()))[0, 1]
    assert compare(approximate, exact).spearman == pytest.approx(expected)


def test_top_overlap_counts_the_shared_greatest_drops(make_heatmap: Make) -> None:
    exact = -torch.arange(100.0).view(10, 10)  # the greatest drops are the last ten
    approximate = exact.clone()
    approximate[9, :4] = 0.5
    quality = compare(logits_map(make_heatmap, approximate), logits_map(make_heatmap, exact))
    assert quality.top10_overlap == 0.6


@pytest.mark.parametrize(("side", "window"), [(10, 7), (7, 7), (6, 3), (3, 3)])
def test_ssim_is_pinned_to_the_colours_of_the_papers(side: int, window: int, make_heatmap: Make) -> None:
    import matplotlib

    exact = torch.rand(side, side + 1, generator=torch.Generator().manual_seed(0)) - 0.3
    approximate = exact + 0.1 * torch.rand(exact.shape, generator=torch.Generator().manual_seed(1))
    reach = exact.abs().max()

    def colours(scores: torch.Tensor) -> np.ndarray:
        unit = ((scores.double() + reach) / (2 * reach)).clamp(0, 1)
        return matplotlib.colormaps["jet_r"](unit.numpy(), bytes=True)[..., :3]

    expected = structural_similarity(colours(approximate), colours(exact), data_range=255, channel_axis=2, win_size=window)
    found = compare(logits_map(make_heatmap, approximate), logits_map(make_heatmap, exact)).ssim
    assert found == pytest.approx(expected, abs=1e-3)


def test_ssim_is_left_out_where_there_is_nothing_to_see(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    flat = logits_map(make_heatmap, torch.linspace(0, 0.019, 64).view(8, 8))
    assert compare(flat, flat).ssim is None
    narrow = logits_map(make_heatmap, torch.linspace(0, 1, 16).view(2, 8))
    assert compare(narrow, narrow).ssim is None
    masks = make_heatmap(masks=overlapping_masks)
    assert compare(masks, masks).ssim is None
    assert compare(masks, masks).spearman == pytest.approx(1)


def test_constant_maps_have_no_ranks(make_heatmap: Make) -> None:
    constant = logits_map(make_heatmap, torch.zeros(8, 8))
    quality = compare(constant, constant)
    assert (quality.spearman, quality.relative_rmse, quality.exact_range) == (None, 0, 0)
    assert compare(logits_map(make_heatmap, torch.ones(8, 8)), constant).relative_rmse == float("inf")


def test_the_class_and_score_of_the_exact_map_are_compared(make_heatmap: Make) -> None:
    exact = make_heatmap(target=1, score_kind="margin")
    assert compare(make_heatmap(target=0), exact).relative_rmse == 0


def test_a_partial_map_is_judged_by_what_it_knows(make_heatmap: Make) -> None:
    known = torch.ones(7, 7, dtype=torch.bool)
    known[:3] = False
    quality = compare(make_heatmap(known=known), make_heatmap())
    assert quality.relative_rmse == 0
    assert quality.ssim is not None
    assert quality.ssim < 0.9


def test_maps_that_cannot_be_compared_are_refused(make_heatmap: Make) -> None:
    nothing = make_heatmap(known=torch.zeros(7, 7, dtype=torch.bool))
    with pytest.raises(BindError, match="different positions"):
        compare(make_heatmap(stride=(4, 4)), make_heatmap())
    with pytest.raises(BindError, match="not complete"):
        compare(make_heatmap(), nothing)
    with pytest.raises(BindError, match="nothing"):
        compare(nothing, make_heatmap())


# ---------------------------------------------------------------------------------------------------- measured by the map


def approximated(make_heatmap: Make, error: float, count: int) -> tuple[Heatmap, Heatmap]:
    """A map whose changes are too small or too large by about that part, with `count` held out positions, and the exact one."""
    generator = torch.Generator().manual_seed(2)
    cells = torch.linspace(0, 6, 40)
    exact = torch.stack([torch.sin(cells)[:, None] * torch.cos(cells), torch.zeros(40, 40)], -1)
    noise = torch.randn(1, 1, 10, 10, generator=generator)
    factor = 1 + error * torch.nn.functional.interpolate(noise, (40, 40), mode="bicubic")[0, 0, ..., None]
    logits = exact * factor
    indices = torch.arange(13, 1600, 1600 // count)
    held_out = HeldOut(indices, logits.view(-1, 2)[indices])
    known = torch.zeros(1600, dtype=torch.bool)
    known[indices] = True
    logits.view(-1, 2)[indices] = exact.view(-1, 2)[indices]
    size = {"size": (40, 40), "patch": (1, 1), "stride": (1, 1), "classes": 2, "base_logits": torch.zeros(2)}
    said = {"exact": known.view(40, 40), "held_out": held_out, "info": {"approximations": ["keep 0.9"]}}
    return make_heatmap(**size, logits=logits, **said), make_heatmap(**size, logits=exact)


@pytest.mark.parametrize("error", [0.02, 0.1, 0.3])
def test_maps_measure_themselves_near_the_truth(make_heatmap: Make, error: float) -> None:
    rough, exact = approximated(make_heatmap, error, count=80)
    truth, found = compare(rough, exact), rough.quality
    assert found is not None
    assert (found.approximations, found.positions) == (("keep 0.9",), 80)
    assert found.ssim == pytest.approx(truth.ssim, abs=0.05)
    assert 0.4 < found.relative_rmse / truth.relative_rmse < 2.5


def test_larger_errors_are_measured_as_larger(make_heatmap: Make) -> None:
    found = [approximated(make_heatmap, error, count=40)[0].quality for error in (0.0, 0.05, 0.2, 0.8)]
    assert found[0].ssim == pytest.approx(1)
    assert found[0].relative_rmse == 0
    assert [quality.ssim for quality in found] == sorted((quality.ssim for quality in found), reverse=True)
    assert [quality.relative_rmse for quality in found] == sorted(quality.relative_rmse for quality in found)


def test_quality_is_that_of_the_class_and_score_shown(make_heatmap: Make) -> None:
    rough, exact = approximated(make_heatmap, 0.1, count=80)
    other, truth = rough.for_class(1).with_score("logit"), compare(rough.for_class(1), exact.for_class(1).with_score("logit"))
    assert (truth.relative_rmse, other.quality.relative_rmse) == (0, None)  # the second class's logit is flat
    assert rough.with_score("margin").quality.relative_rmse > 0


def test_exact_maps_have_no_quality_to_speak_of(make_heatmap: Make) -> None:
    assert make_heatmap().quality is None
    assert "approximate" not in repr(make_heatmap())


def test_masks_are_measured_without_ssim(make_heatmap: Make, overlapping_masks: torch.Tensor) -> None:
    exact = torch.tensor([True, False, False, True, False])
    held_out = HeldOut(torch.tensor([0, 3]), torch.zeros(2, 3))
    said = {"info": {"approximations": ["tau 0.5"]}}
    quality = make_heatmap(masks=overlapping_masks, exact=exact, held_out=held_out, **said).quality
    assert quality.ssim is None
    assert 0 < quality.relative_rmse < 10
    assert str(quality).startswith("approximate (tau 0.5): no SSIM (masks have no grid), RMSE about ")
    assert str(quality).endswith("measured on only 2 positions")


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (torch.linspace(0, 0.019, 64).view(8, 8), "the map is flat: its range is under 0.02"),
        (torch.linspace(0, 1, 16).view(2, 8), "the grid is under 3x3"),
        (torch.linspace(0, 1, 64).view(8, 8), ""),
    ],
)
def test_a_map_without_ssim_says_why(scores: torch.Tensor, why: str, make_heatmap: Make) -> None:
    whole = logits_map(make_heatmap, scores)
    held_out = HeldOut(torch.arange(8), whole.logits.view(-1, whole.logits.shape[-1])[:8])
    exact = (torch.arange(whole.known.numel()) < 8).view(whole.known.shape)
    quality = replace(whole, held_out=held_out, exact=exact, info={"approximations": ["keep 0.9"]}).quality
    assert quality.without_ssim == why
    assert (quality.ssim is None) == bool(why)
    assert (f"no SSIM ({why}), " in str(quality)) == bool(why)
    assert str(quality).endswith("measured on 8 positions")


def test_an_error_at_a_peak_is_not_taken_for_a_large_one(make_heatmap: Make) -> None:
    """A dome whose top is the base score: there it has neither slope nor drop to measure an error by."""
    away = torch.arange(41.0) - 20
    dome = -(away[:, None] ** 2 + away**2) / 400
    rough = logits_map(make_heatmap, dome)
    places = torch.tensor([41 * row + column for row in (5, 20, 35) for column in (5, 20, 35)])
    held_out = HeldOut(places, rough.logits.view(-1, 1)[places] - 0.01)
    exact = torch.zeros(41 * 41, dtype=torch.bool).index_fill(0, places, True).view(41, 41)
    found = replace(rough, exact=exact, held_out=held_out, info={"approximations": ["keep 0.9"]}).quality
    assert found is not None
    assert found.relative_rmse is not None
    assert found.relative_rmse < 10 * 0.01 / float(dome.max() - dome.min())
