"""MODE APPROXIMATE, from statement to heat map: drill-down, what is exact, and the quality that maps say of themselves."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from session_net import LABELS, SHAPE, SmallNet, run
from torch import Tensor

import krypton
from krypton import BindError, Heatmap, explain_occlusion
from krypton.cli.render import summary
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.planner.order import evenly
from krypton.results import compare

FINE = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 5 STRIDE 1"
DRILL = f"{FINE} MODE APPROXIMATE WITH (drilldown => 0.1, speedup => 3, quality_share => 0.1)"


@pytest.fixture(scope="module")
def exact(shared_session: krypton.Connection, pixels: NDArray[np.uint8]) -> Heatmap:
    heatmap: Heatmap = run(shared_session, FINE, img=pixels)
    return heatmap


def test_exact_positions_are_exact_and_the_others_are_near(
    con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    heatmap = run(con, DRILL, img=pixels)
    assert heatmap.complete
    assert heatmap.info["mode"] == "approximate"
    assert torch.allclose(heatmap.logits[heatmap.exact], exact.logits[heatmap.exact], atol=1e-5)
    rough = ~heatmap.exact
    assert not torch.allclose(heatmap.logits[rough], exact.logits[rough], atol=1e-5)
    spread = exact.logits.amax((0, 1)) - exact.logits.amin((0, 1))
    assert ((heatmap.logits - exact.logits).abs() < spread).all()
    assert exact.exact.all()
    assert exact.quality is None


def test_the_speed_up_is_kept_in_positions(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap = run(con, f"{FINE} MODE APPROXIMATE WITH (quality_share => 0)", img=pixels)
    assert 0.95 * 3 <= heatmap.known.numel() / int(heatmap.exact.sum()) < 3.6


def test_the_least_scores_are_computed(con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap) -> None:
    """What drill-down is for: where the exact map is lowest the approximate one is exact, but for a few."""
    heatmap = run(con, f"{FINE} MODE APPROXIMATE WITH (drilldown => 0.3, speedup => 2)", img=pixels)
    lowest = exact.heatmap.ravel().argsort()[: round(0.05 * exact.heatmap.size)]
    assert heatmap.exact.numpy().ravel()[lowest].mean() > 0.8


@pytest.mark.parametrize(
    "clauses",
    [
        "FILL NOISE",
        "FILL BLUR SCORE LOGIT",
        "SCORE MARGIN FOR CLASS 'fluid'",
        "IN REGION (2, 3, 16, 17)",
        "FOR CLASS TOP 2",
        "STRIDE 1x2 PATCH 3x6",
    ],
)
def test_every_clause_goes_together_with_it(clauses: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    text = FINE.replace("PATCH 5 STRIDE 1", "") if "PATCH" in clauses else FINE
    given = "WITH (drilldown => 0.1, speedup => 2, quality_share => 0.05, seed => 3)"
    heatmap = run(con, f"{text} {clauses} MODE APPROXIMATE {given}", img=pixels)
    wanted = run(con, f"{text} {clauses} WITH (seed => 3)", img=pixels)
    pairs = [(heatmap, wanted)] if isinstance(heatmap, Heatmap) else zip(heatmap, wanted, strict=True)
    for one, other in pairs:
        assert torch.allclose(one.logits[one.exact], other.logits[one.exact], atol=1e-5)
        assert one.complete
        assert not one.exact.all()
        assert (one.target, one.score_kind) == (other.target, other.score_kind)


def test_an_approximate_map_knows_what_it_is(con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap) -> None:
    heatmap = run(con, DRILL, img=pixels)
    quality, truth = heatmap.quality, compare(heatmap, exact)
    assert quality.approximations == ("drilldown 0.1", "speedup 3")
    assert quality.positions == len(heatmap.held_out.indices) > 20
    assert quality.relative_rmse == pytest.approx(truth.relative_rmse, rel=0.5)
    assert (quality.ssim, truth.ssim) == (None, None)  # the map is too flat
    assert "approximate (drilldown 0.1, speedup 3): no SSIM (the map is flat: its range is under 0.02), RMSE about" in repr(
        heatmap
    )
    assert f"measured on {quality.positions} positions" in summary(heatmap)


def test_held_out_values_were_approximate_and_are_exact(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap, without = (
        run(con, text, img=pixels) for text in (DRILL, DRILL.replace("quality_share => 0.1", "quality_share => 0"))
    )
    indices = heatmap.held_out.indices
    assert heatmap.exact.flatten()[indices].all()
    assert not without.exact.flatten()[indices].any()
    assert torch.allclose(heatmap.held_out.logits, without.logits.flatten(0, 1)[indices], atol=1e-6)


def test_without_held_out_positions_the_quality_is_not_known(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap = run(con, f"{FINE} MODE APPROXIMATE WITH (quality_share => 0)", img=pixels)
    assert (heatmap.quality.positions, heatmap.quality.ssim, heatmap.quality.relative_rmse) == (0, None, None)
    assert "of unmeasured quality" in repr(heatmap)


def test_another_class_keeps_the_map_and_says_what_it_was_refined_for(
    con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    heatmap = run(con, f"{DRILL} FOR CLASS 'drusen'", img=pixels)
    assert heatmap.info["refined_for"] == "drusen"
    assert "refined for" not in summary(heatmap)
    other = heatmap.for_class("fluid")
    assert torch.equal(other.exact, heatmap.exact)
    assert other.quality.relative_rmse != heatmap.quality.relative_rmse
    assert "refined for 'drusen'" in summary(other)


def test_the_same_query_gives_the_same_map(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    first, second, other = (
        run(con, DRILL.replace(")", f", seed => {seed})"), img=pixels).held_out.indices.tolist() for seed in (0, 0, 1)
    )
    assert first == second != other


def test_a_stream_fills_up_to_the_whole_map(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    *earlier, last = con.sql(DRILL, {"img": pixels}).stream()
    assert not earlier[0].complete
    assert earlier[0].exact[earlier[0].known].all()
    whole = run(con, DRILL, img=pixels)
    assert torch.equal(last.exact, whole.exact)
    assert torch.allclose(last.logits, whole.logits)


def test_files_and_tables_say_what_is_exact(con: krypton.Connection, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    heatmap = run(con, f"{DRILL} INTO '{tmp_path}/heat.npz'", img=pixels)
    saved = np.load(tmp_path / "heat.npz")
    assert np.array_equal(saved["exact"], heatmap.exact.numpy())
    metadata = json.loads(str(saved["metadata"]))
    assert metadata["quality"]["positions"] == heatmap.quality.positions
    assert metadata["info"]["approximations"] == ["drilldown 0.1", "speedup 3"]
    run(con, f"{DRILL} INTO TABLE heat", img=pixels)
    assert con.sql("SELECT count(*) FROM heat WHERE exact").fetchall() == [(int(heatmap.exact.sum()),)]
    heatmap.save(tmp_path / "heat.parquet")
    counted = con.sql(f"SELECT count(*) FILTER (exact), count(*) FROM '{tmp_path}/heat.parquet'").fetchall()
    assert counted == [(int(heatmap.exact.sum()), heatmap.exact.numel())]


def test_plans_show_stages_and_survive_json(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    query = con.sql(DRILL, {"img": pixels})
    assert plan_from_json(plan_to_json(query.plan())) == query.plan()
    assert "stage 3, hold out" in str(con.sql(f"EXPLAIN PLAN FOR {DRILL}", {"img": pixels}))
    assert "measured" in query.explain(analyze=True)
    assert json.loads(query.explain(format="json"))["stages"][0]["kind"] == "coarse"


# ---------------------------------------------------------------------------------------------------- tau and keep


@pytest.fixture
def incremental(con: krypton.Connection) -> None:
    """On maps as small as these whole ones are cheaper, and large tiles cover them: nothing would be cut."""
    con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    con.sql("SET krypton.batch = 2")


@pytest.mark.usefixtures("incremental")
@pytest.mark.parametrize("option", ["tau => 0.4", "keep => 0.9", "tau => 0.6, keep => 0.99"])
def test_cut_maps_are_near_the_exact_one_and_say_how_near(
    option: str, con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    heatmap = run(con, f"{FINE} SCORE LOGIT MODE APPROXIMATE WITH ({option}, quality_share => 0.1)", img=pixels)
    assert int(heatmap.exact.sum()) == heatmap.quality.positions == 32
    assert torch.allclose(heatmap.logits[heatmap.exact], exact.logits[heatmap.exact], atol=1e-5)
    truth = compare(heatmap, exact.with_score("logit"))
    assert 0 < truth.relative_rmse < 0.2
    assert heatmap.quality.relative_rmse == pytest.approx(truth.relative_rmse, rel=0.5)
    assert heatmap.quality.approximations == tuple(option.replace(" =>", "").split(", "))


@pytest.mark.usefixtures("incremental")
def test_corrected_maps_are_exact_at_crossings_and_lose_interpolated_errors_between(
    con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    cheap, mended = (
        run(con, f"{FINE} MODE APPROXIMATE WITH (tau => 0.3, {option}quality_share => 0)", img=pixels)
        for option in ("", "correct => 3, ")
    )
    rows, columns = (evenly(length, 3) for length in exact.known.shape)
    crossings = torch.zeros_like(exact.known)
    crossings[np.ix_(rows, columns)] = True
    assert torch.equal(mended.exact, crossings)
    assert torch.allclose(mended.logits[crossings], exact.logits[crossings], atol=1e-5)
    errors = exact.logits - cheap.logits
    (top, below), left = rows[1:3], columns[2]
    between = cheap.logits[top + 1, left] + (2 * errors[top, left] + errors[below, left]) / 3
    assert torch.allclose(mended.logits[top + 1, left], between, atol=1e-5)
    assert mended.info["approximations"] == ["tau 0.3", "correct 3"]


@pytest.mark.usefixtures("incremental")
@pytest.mark.parametrize("option", ["tau => 0.4", "keep => 0.8"])
def test_the_quality_of_corrected_maps_is_measured_elsewhere_than_they_were_corrected(
    option: str, con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    text = f"{FINE} SCORE LOGIT MODE APPROXIMATE WITH ({option}, correct => 3, quality_share => 0.2)"
    query = con.sql(text, {"img": pixels})
    assert [stage.kind for stage in query.plan().stages][-3:] == ["every", "correct", "hold_out"]
    assert plan_from_json(plan_to_json(query.plan())) == query.plan()
    assert "positions exactly, every 3. row and column, and errors between them interpolated" in query.explain()
    heatmap = query.run()
    rows, columns = (evenly(length, 3) for length in exact.known.shape)
    held_out = {divmod(index, exact.known.shape[1]) for index in heatmap.held_out.indices.tolist()}
    assert not [(row, column) for row, column in held_out if row in rows and column in columns]
    truth = compare(heatmap, exact.with_score("logit"))
    assert 0.7 * truth.relative_rmse < heatmap.quality.relative_rmse < 2.2 * truth.relative_rmse
    assert query.estimate().positions >= exact.known.numel() + len(rows) * len(columns)


def test_there_is_nothing_to_correct_in_what_is_exact(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap = run(con, f"{FINE} MODE APPROXIMATE WITH (tau => 1, correct => 3)", img=pixels)
    assert heatmap.exact.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("correct => 3", "mends what freeze, keep or tau leave out: write one"),
        ("correct => 3, freeze => FALSE", "mends what freeze, keep or tau leave out"),
        ("keep => 0.9, correct => 1", "correct takes a whole number of at least 2, not 1"),
        ("keep => 0.9, correct => 2.5", "correct takes a whole number of at least 2"),
        ("drilldown => 0.4", "speedup is not written: that is its default"),
        ("keep => 0.9, correct => 3, drilldown => 0.1", "correct and drilldown contradict each other"),
        ("ssim => 0.9, correct => 3", "ssim is a goal, and correct already says"),
        ("crop => TRUE, keep => 0.9", "crop says how tau cuts fields, and tau is missing"),
        ("crop => 1, tau => 0.9", "crop is TRUE or FALSE, not 1"),
    ],
)
def test_corrections_and_crops_that_make_no_sense(
    options: str, message: str, con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    with pytest.raises(BindError, match=message):
        con.sql(f"{FINE} MODE APPROXIMATE WITH ({options})", {"img": pixels})


@pytest.mark.parametrize("seed", [2**63, 2**70, -1, 0.5, float("nan"), float("inf"), True, "1"])
def test_seeds_that_make_no_sense(seed: Any, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match="seed takes a whole number of at least 0"):
        explain_occlusion(SmallNet(), pixels, mode="approximate", seed=seed, input_shape=SHAPE)


def test_options_may_be_numbers_of_numpy(pixels: NDArray[np.uint8]) -> None:
    options = {"keep": np.float32(0.9), "correct": np.int64(2), "seed": np.uint8(3)}
    heatmap = explain_occlusion(SmallNet(), pixels, patch=5, mode="approximate", input_shape=SHAPE, **options)
    assert heatmap.complete


@pytest.mark.usefixtures("incremental")
@pytest.mark.parametrize("options", ["keep => 0.9", "keep => 0.9, drilldown => 0.1, speedup => 3", "ssim => 0.95"])
def test_what_is_exact_in_a_streamed_map_stays_so(options: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    maps = list(con.sql(f"{FINE} MODE APPROXIMATE WITH ({options})", {"img": pixels}).stream())
    assert len(maps) > 1
    for earlier, later in itertools.pairwise(maps):
        assert later.exact[earlier.exact].all()
        assert torch.equal(later.logits[earlier.exact], earlier.logits[earlier.exact])


@pytest.mark.usefixtures("incremental")
def test_corrections_need_a_grid_and_no_deadline(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match="WITHIN and option correct contradict each other"):
        con.sql(f"{FINE} WITHIN 3 SECONDS WITH (keep => 0.9, correct => 3)", {"img": pixels})
    masks = np.zeros((2, *SHAPE[1:]), bool)
    masks[0, :4, :4] = masks[1, 8:12, 8:12] = True
    query = "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $masks MODE APPROXIMATE WITH (tau => 0.5, correct => 3)"
    with pytest.raises(BindError, match="correct needs a grid of positions"):
        run(con, query, img=pixels, masks=masks)


@pytest.mark.usefixtures("incremental")
def test_analyze_shows_the_fields_that_the_run_cut_and_what_that_saves(
    con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    query = con.sql(f"{FINE} MODE APPROXIMATE WITH (keep => 0.8)", {"img": pixels})
    planned, ran = (query.explain(analyze=analyze) for analyze in (False, True))
    assert "measured as the query runs; those shown are uncut" in planned
    assert "shown are uncut" not in ran
    (saved,) = re.findall(r"the fields of \d operators are cut, which leaves (\d+)% of the arithmetic", ran)
    assert 0 < int(saved) < 100
    conv = r"conv .* \d+×\d+×\d+ +(\d+)×(\d+)"
    fields = [[int(a) * int(b) for a, b in re.findall(conv, text)] for text in (planned, ran)]
    assert all(after <= before for before, after in zip(*fields, strict=True))
    assert sum(fields[1]) < sum(fields[0])


@pytest.mark.usefixtures("incremental")
def test_keeping_more_is_nearer(con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap) -> None:
    for name, values in (("keep", (0.5, 0.9, 0.999)), ("tau", (0.3, 0.5, 0.9))):
        errors = [
            compare(run(con, f"{FINE} MODE APPROXIMATE WITH ({name} => {value}, quality_share => 0)", img=pixels), exact)
            for value in values
        ]
        assert errors[0].relative_rmse > errors[1].relative_rmse > errors[2].relative_rmse


@pytest.mark.parametrize("option", ["tau => 1", "keep => 1"])
def test_nothing_cut_is_exact(option: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap = run(con, f"{FINE} MODE APPROXIMATE WITH ({option})", img=pixels)
    assert heatmap.exact.all()
    assert heatmap.quality is None


@pytest.mark.usefixtures("incremental")
@pytest.mark.parametrize("option", ["tau => 0.5", "keep => 0.9", "keep => 0.9, tolerance => 0.1"])
def test_cuts_and_drill_down_go_together(option: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    query = con.sql(f"{FINE} MODE APPROXIMATE WITH ({option}, drilldown => 0.1, speedup => 3)", {"img": pixels})
    kinds = [stage.kind for stage in query.plan().stages]
    assert kinds == [*(["measure"] if "keep" in option else []), "coarse", "refine", "hold_out", "interpolate"]
    heatmap = query.run()
    assert heatmap.complete
    held_out = heatmap.held_out.indices
    assert heatmap.exact.flatten().nonzero()[:, 0].tolist() == sorted(held_out.tolist())
    naive = run(con, f"{FINE} MODE NAIVE", img=pixels)
    assert torch.allclose(heatmap.logits[heatmap.exact], naive.logits[heatmap.exact], atol=1e-5)
    assert compare(heatmap, naive).relative_rmse < 0.3


def test_low_precision_alone_makes_no_approximate_map(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap = run(con, f"{FINE} WITH (tolerance => 0.1)", img=pixels)
    assert heatmap.quality is None
    assert heatmap.info["mode"] == "exact"
    assert "approximate" not in repr(heatmap)


@pytest.mark.usefixtures("incremental")
@pytest.mark.parametrize("option", ["tau => 0.4", "keep => 0.9"])
def test_masks_are_cut_too(option: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    masks = torch.zeros(30, 20, 24, dtype=torch.bool)
    for number, mask in enumerate(masks):
        top, left = number % 15, number * 7 % 19
        mask[top : top + 3 + number % 3, left : left + 2 : 1 + number % 2] = True
    text = "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m"
    heatmap = run(con, f"{text} MODE APPROXIMATE WITH ({option}, quality_share => 0.2)", img=pixels, m=masks)
    wanted = run(con, text, img=pixels, m=masks)
    assert not heatmap.exact.all()
    assert torch.allclose(heatmap.logits[heatmap.exact], wanted.logits[heatmap.exact], atol=1e-5)
    assert heatmap.quality.ssim is None
    assert 0 < heatmap.quality.relative_rmse < 0.3


@pytest.mark.usefixtures("incremental")
def test_a_few_occlusions_are_not_worth_measuring(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    heatmap = run(con, FINE.replace("1", "6") + " MODE APPROXIMATE WITH (keep => 0.9)", img=pixels)
    assert heatmap.exact.numel() == 12
    assert heatmap.exact.all()


class Unwilling(SmallNet):
    """Cannot be captured: what it does depends on the values of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.mean() > 1e9):
            return super().forward(x) * 2
        return super().forward(x)


def test_a_model_that_cannot_be_captured_is_drilled_down_naively(
    con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    said = {"mean": 0.5, "std": 0.25, "labels": LABELS, "patch": 5, "stride": 1}
    heatmap = explain_occlusion(Unwilling(), pixels, mode="approximate", drilldown=0.1, **said)
    assert heatmap.info["notes"]
    assert heatmap.image_size == SHAPE[1:]
    assert 0.25 < heatmap.exact.float().mean() < 0.4
    assert torch.allclose(heatmap.logits[heatmap.exact], exact.logits[heatmap.exact], atol=1e-5)


def test_a_speed_up_that_cannot_be_reached_is_refused_at_once(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match="allows a speed-up of at most"):
        con.sql(f"{FINE} MODE APPROXIMATE WITH (drilldown => 0.1, speedup => 9.9)", {"img": pixels})
    with pytest.raises(BindError, match="drilldown needs a grid"):
        explain_occlusion(SmallNet(), pixels, masks=np.ones((1, 20, 24), bool), mode="approximate")


def test_where_nothing_is_said_a_grid_that_is_too_small_for_a_drill_down_is_computed_whole(
    con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    small = FINE.replace("STRIDE 1", "STRIDE 12")
    heatmap = run(con, f"{small} MODE APPROXIMATE", img=pixels)
    assert bool(heatmap.exact.all())
    assert any("too small for the drill-down" in note for note in heatmap.info["notes"])
    assert torch.equal(heatmap.logits, run(con, small, img=pixels).logits)
