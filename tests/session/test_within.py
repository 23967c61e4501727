"""WITHIN n SECONDS: the best map by then, exact where there was time, its quality said; never later, never a wrong answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from session_net import LABELS, SHAPE, SmallNet, Steep, pictures, run
from torch import Tensor, nn

import krypton
from krypton import BindError, ExecutionError, Heatmap, explain_occlusion
from krypton.cli.render import summary
from krypton.estimates import Estimate
from krypton.executor.interpolation import interpolated
from krypton.executor.pacing import Clock
from krypton.ir.occlusions import Grid
from krypton.ir.plan import QueryPlan, Stage
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.planner.deadline import KEEP, TOLERANCE
from krypton.planner.prediction import Prediction
from krypton.results import compare

FINE = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 5 STRIDE 1 SCORE LOGIT"
POSITIONS = 16 * 20


@pytest.fixture(scope="module")
def exact(shared_session: krypton.Connection, pixels: NDArray[np.uint8]) -> Heatmap:
    heatmap: Heatmap = run(shared_session, FINE, img=pixels)
    return heatmap


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that go on as positions are computed: a hundredth of the deadline each."""

    class Counting(Clock):
        _steps = 0.0

        @property
        def spent(self) -> float:
            return self._steps * self.seconds

        def ran(self, count: int, seconds: float) -> None:
            self._steps += 0.01 * count
            super().ran(count, 0.01 * count * self.seconds)

        def finished(self, count: int, seconds: float) -> None:
            super().finished(count, 0.0)

    monkeypatch.setattr("krypton.query.Clock", Counting)


def test_with_enough_time_the_map_is_exact(con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap) -> None:
    heatmap = run(con, f"{FINE} WITHIN 60 SECONDS", img=pixels)
    assert heatmap.exact.all()
    assert heatmap.quality is None
    assert torch.allclose(heatmap.logits, exact.logits, atol=1e-5)


@pytest.mark.usefixtures("few")
def test_with_little_time_the_map_is_whole_and_says_how_good_it_is(
    con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    heatmap = run(con, f"{FINE} WITHIN 1000 SECONDS WITH (quality_share => 0.05)", img=pixels)
    assert heatmap.complete
    assert np.isfinite(heatmap.heatmap).all()
    assert 60 < int(heatmap.exact.sum()) <= 100
    assert torch.allclose(heatmap.logits[heatmap.exact], exact.logits[heatmap.exact], atol=1e-5)
    truth = compare(heatmap, exact)
    assert heatmap.quality.positions >= 3
    assert heatmap.quality.relative_rmse == pytest.approx(truth.relative_rmse, rel=1.0)
    assert "approximate (within 1000 s): " in summary(heatmap)
    base = compare(_replaced(exact, exact.base_logits.expand_as(exact.logits)), exact)
    assert truth.relative_rmse < 0.6 * base.relative_rmse


def _replaced(heatmap: Heatmap, logits: Tensor) -> Heatmap:
    from dataclasses import replace

    return replace(heatmap, logits=logits)


@pytest.mark.usefixtures("few")
def test_held_out_values_were_interpolated(con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap) -> None:
    heatmap = run(con, f"{FINE} WITHIN 1000 SECONDS WITH (quality_share => 0.05)", img=pixels)
    held_out = heatmap.held_out.indices
    assert heatmap.exact.flatten()[held_out].all()
    thought, truth = heatmap.held_out.logits, exact.logits.flatten(0, 1)[held_out]
    assert not torch.allclose(thought, truth, atol=1e-5)
    assert torch.allclose(heatmap.logits.flatten(0, 1)[held_out], truth, atol=1e-5)
    computed, grid = heatmap.exact.flatten(), Grid(heatmap.image_size, (5, 5), (1, 1))
    among_all = interpolated(heatmap.logits.flatten(0, 1), grid, computed)
    assert torch.allclose(heatmap.logits.flatten(0, 1), among_all, atol=1e-6)
    computed[held_out] = False
    among_others = interpolated(heatmap.logits.flatten(0, 1), grid, computed)
    assert torch.allclose(thought, among_others[held_out], atol=1e-6)


@pytest.mark.usefixtures("few")
def test_no_position_is_computed_twice(con: krypton.Connection, pixels: NDArray[np.uint8], monkeypatch: Any) -> None:
    from krypton.executor import engine as engines

    seen: list[int] = []
    original = engines.tile_batches

    def watched(*given: Any, **options: Any) -> Any:
        for batch in original(*given, **options):
            seen.extend(batch.indices.tolist())
            yield batch

    monkeypatch.setattr(engines, "tile_batches", watched)
    heatmap = run(con, f"{FINE} WITHIN 1000 SECONDS", img=pixels)
    assert len(seen) == len(set(seen)) == int(heatmap.exact.sum())


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "clauses",
    [
        "FILL NOISE",
        "SCORE MARGIN FOR CLASS 'fluid'",
        "IN REGION (2, 3, 16, 17)",
        "FOR CLASS TOP 2",
        "STRIDE 1x2",
        "MODE APPROXIMATE",
    ],
)
def test_every_clause_goes_together_with_it(clauses: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    text = FINE.replace("STRIDE 1", "") if "STRIDE" in clauses else FINE
    text = text.replace("SCORE LOGIT", "") if "SCORE" in clauses else text
    found = run(con, f"{text} {clauses} WITHIN 1000 SECONDS", img=pixels)
    wanted = run(con, f"{text} {clauses}".replace("MODE APPROXIMATE", ""), img=pixels)
    pairs = [(found, wanted)] if isinstance(found, Heatmap) else zip(found, wanted, strict=True)
    for one, other in pairs:
        assert one.complete
        assert 30 < int(one.exact.sum()) <= 101
        assert torch.allclose(one.logits[one.exact], other.logits[one.exact], atol=1e-5)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("option", ["tau => 0.4", "keep => 0.9", "tolerance => 0.1"])
@pytest.mark.parametrize("enough", [True, False])
def test_cheaper_positions_go_together_with_it(
    option: str, enough: bool, con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    con.sql("SET krypton.batch = 2")
    text = FINE.replace("STRIDE 1", "STRIDE 3") if enough else FINE  # 6 × 7 positions
    heatmap = run(con, f"{text} WITHIN 1000 SECONDS WITH ({option})", img=pixels)
    wanted = exact.logits[::3, ::3] if enough else exact.logits
    assert heatmap.complete
    assert torch.allclose(heatmap.logits[heatmap.exact], wanted[heatmap.exact], atol=1e-5)
    assert bool(heatmap.exact.all()) == enough  # time that is left over makes the map exact
    if not enough:
        assert heatmap.quality.positions > 0


@pytest.fixture
def steep() -> Iterator[krypton.Connection]:
    """A session whose `net` gives maps with a range, and remembers no results."""
    with krypton.connect(config={"reuse_results": False}) as connection:
        connection.register_model("net", Steep(), input_shape=SHAPE, mean=0.5, std=0.25, labels=LABELS)
        yield connection


GOAL = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 5 STRIDE 1"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries are thought to take 100 s, but those of which all is known."""

    def estimate(prediction: Prediction, *_: Any) -> Estimate:
        seconds = 100.0 if prediction.positions else 0.0
        return Estimate(prediction.positions, seconds, 0.9 * seconds, 1.1 * seconds, 0, "nothing")

    monkeypatch.setattr("krypton.query.estimate", estimate)


def test_where_time_suffices_for_half_of_the_positions_they_become_cheaper(
    slow: None, con: krypton.Connection, pixels: NDArray[np.uint8], exact: Heatmap
) -> None:
    con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    query = con.sql(f"{FINE} WITHIN 50 SECONDS", params={"img": pixels})
    plan = query.plan()
    assert plan.approximation is not None
    assert plan.approximation.keep == KEEP
    assert any("all positions would take about 100.0 s" in note for note in plan.notes)
    assert f"keep {KEEP:g} and tolerance {TOLERANCE:g}" in query.explain()
    heatmap = query.run()
    assert torch.allclose(heatmap.logits, exact.logits, atol=1e-5)  # there was time after all
    assert heatmap.exact.all()


@pytest.mark.parametrize("options", ["keep => 1", "tau => 0.9", "freeze => TRUE", "tolerance => 0", "ssim => 0.9", "ssim => 1"])
def test_what_is_written_is_not_chosen_otherwise(
    options: str, slow: None, con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    plan = con.sql(f"{FINE} WITHIN 50 SECONDS WITH ({options})", params={"img": pixels}).plan()
    assert plan.approximation is not None
    assert plan.approximation.keep in (None, 1.0)
    assert plan.tensor is not None
    assert not plan.tensor.tolerance


def test_nothing_is_chosen_that_takes_much_of_the_time_to_measure(
    slow: None, con: krypton.Connection, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krypton.query.MOST_MEASURING", 1e-9)
    _assert_positions_alone(con.sql(f"{FINE} WITHIN 50 SECONDS", params={"img": pixels}).plan())


def test_nothing_is_chosen_where_all_is_known(slow: None, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    con.sql("SET krypton.reuse_results = true")
    run(con, FINE, img=pixels)
    _assert_positions_alone(con.sql(f"{FINE} WITHIN 50 SECONDS", params={"img": pixels}).plan())


def _assert_positions_alone(plan: QueryPlan) -> None:
    assert plan.approximation is not None
    assert plan.approximation.keep is None
    assert plan.tensor is not None
    assert not plan.tensor.tolerance


def test_estimates_count_that_time_which_is_left_makes_positions_exact(
    con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    con.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    cut = con.sql(f"{FINE} MODE APPROXIMATE WITH (tau => 0.5)", params={"img": pixels}).estimate()
    found = con.sql(f"{FINE} WITHIN 1000 SECONDS WITH (tau => 0.5)", params={"img": pixels}).estimate()
    whole = con.sql(FINE, params={"img": pixels}).estimate()
    assert found.seconds > 1.5 * cut.seconds
    assert found.seconds > whole.seconds
    assert found.positions == whole.positions


def test_a_goal_for_the_quality_ends_it_earlier(steep: krypton.Connection) -> None:
    for picture in pictures(3):
        heatmap, whole = run(steep, f"{GOAL} WITHIN 60 SECONDS WITH (ssim => 0.8)", img=picture), run(steep, GOAL, img=picture)
        assert heatmap.info["goal"].startswith("SSIM 0.8 is reached with ")
        assert "positions computed, the others interpolated" in heatmap.info["goal"]
        assert heatmap.complete
        assert not heatmap.exact.all()
        assert torch.allclose(heatmap.logits[heatmap.exact], whole.logits[heatmap.exact], atol=1e-4)
        similarity = compare(heatmap, whole).ssim
        assert similarity is not None
        assert similarity >= 0.75
        assert heatmap.quality.positions > 0


@pytest.mark.usefixtures("few")
def test_a_goal_that_time_does_not_suffice_for_is_said_to_be_missed(steep: krypton.Connection) -> None:
    heatmap = run(steep, f"{GOAL} WITHIN 1000 SECONDS WITH (ssim => 0.999)", img=pictures(1)[0])
    assert heatmap.info["goal"].startswith("SSIM 0.999 was not promised within 1000 s: about 0.")
    assert not heatmap.exact.all()


def test_a_goal_that_only_all_positions_promise_gives_the_exact_map(steep: krypton.Connection) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    heatmap = run(steep, f"{GOAL} WITHIN 60 SECONDS WITH (ssim => 0.9999)", img=noise)
    assert heatmap.exact.all()
    assert heatmap.info["goal"] == "SSIM 0.9999 is reached by the exact map; nothing less promised it"
    assert run(steep, f"{GOAL} WITHIN 60 SECONDS WITH (ssim => 1)", img=noise).exact.all()


def test_a_flat_map_is_said_to_have_no_goal_to_reach(con: krypton.Connection) -> None:
    even = np.full((20, 24, 3), 128, dtype=np.uint8)  # as the fill is
    heatmap = run(con, f"{GOAL} MODE APPROXIMATE WITH (ssim => 0.9)", img=even)
    assert heatmap.exact.all()
    assert heatmap.info["goal"].endswith("by the exact map; the map is too flat for SSIM to tell less from it")
    within = run(con, f"{GOAL} WITHIN 60 SECONDS WITH (ssim => 0.9)", img=even)
    assert within.info["goal"] == "SSIM 0.9 is reached by the exact map; there was time for it"


def test_plans_show_the_goal_beside_the_deadline(steep: krypton.Connection) -> None:
    text = steep.sql(f"{GOAL} WITHIN 3 SECONDS WITH (ssim => 0.9)", {"img": pictures(1)[0]}).explain()
    assert "within 3 s: stages as far as there is time, or until SSIM 0.9 is promised; the rest is interpolated" in text
    with pytest.raises(BindError, match="MASKS have none"):
        steep.sql(
            "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS SUPERPIXELS 9 WITHIN 3 SECONDS WITH (ssim => 0.9)",
            {"img": pictures(1)[0]},
        )


def test_deadlines_are_kept(pixels: NDArray[np.uint8]) -> None:
    class Slow(SmallNet):
        """Cannot be captured, and takes ten milliseconds for an image."""

        def forward(self, x: Tensor) -> Tensor:
            if bool(x.mean() > 1e9):
                return super().forward(x) * 2
            time.sleep(0.01 * len(x))
            return super().forward(x)

    said = {"mean": 0.5, "std": 0.25, "labels": LABELS, "patch": 5, "stride": 1}
    heatmap = explain_occlusion(Slow(), pixels, within=0.8, **said)
    assert heatmap.complete
    assert 10 < int(heatmap.exact.sum()) < 80
    assert heatmap.info["seconds"] < 1.2  # tests share a machine
    assert heatmap.quality is not None


def test_a_deadline_shorter_than_the_views_is_an_error_that_says_so(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ExecutionError, match=r"too short for any position: the base views .* WITHIN [\d.]+ SECONDS or more"):
        run(con, f"{FINE} WITHIN 0.00001 SECONDS", img=pixels)


@pytest.mark.parametrize(
    ("clauses", "said"),
    [
        ("WITHIN 0 SECONDS", "a number of seconds above 0, not 0"),
        ("WITHIN 3 SECONDS MODE EXACT", "WITHIN and MODE EXACT contradict each other"),
        ("MODE NAIVE WITHIN 3 SECONDS", "WITHIN and MODE NAIVE contradict each other"),
        ("WITHIN 3 SECONDS WITH (speedup => 4)", "WITHIN and option speedup contradict each other"),
        ("WITHIN 3 SECONDS WITH (drilldown => 0.1)", "WITHIN and option drilldown contradict each other"),
        ("WITHIN 3 SECONDS WITH (tau => 2)", "option tau takes a number"),
        ("WITHIN 3 SECONDS WITH (ssim => 1.1)", "option ssim takes a number above 0, at most 1"),
        ("WITHIN 3 SECONDS WITH (ssim => 0.9, tau => 0.5)", "ssim is a goal, and tau already says"),
    ],
)
def test_what_contradicts_it_is_named(clauses: str, said: str, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match=said):
        con.sql(f"{FINE} {clauses}", {"img": pixels})


@pytest.mark.parametrize("within", [0, -1, float("nan"), float("inf"), "3", True])
def test_seconds_are_a_positive_number(within: Any, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(BindError, match="number of seconds above 0"):
        explain_occlusion(SmallNet(), pixels, within=within)


@pytest.mark.usefixtures("few")
def test_masks_there_is_no_time_for_are_unknown(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    masks = torch.rand(130, *SHAPE[1:], generator=torch.Generator().manual_seed(0)) < 0.2
    text = "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m"
    heatmap = run(con, f"{text} WITHIN 1000 SECONDS", img=pixels, m=masks)
    wanted = run(con, text, img=pixels, m=masks)
    assert 50 < int(heatmap.known.sum()) <= 100
    assert not heatmap.complete
    assert torch.equal(heatmap.known, heatmap.exact)
    assert torch.allclose(heatmap.logits[heatmap.known], wanted.logits[heatmap.known], atol=1e-5)
    assert np.isnan(heatmap.heatmap[~heatmap.known.numpy()]).all()
    assert heatmap.quality is None
    assert "of 130 known" in repr(heatmap)


def test_plans_and_estimates_show_the_deadline(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    query = con.sql(f"{FINE} WITHIN 0.001 SECONDS", {"img": pixels})
    plan = query.plan()
    assert plan_from_json(plan_to_json(plan)) == plan
    assert [stage.kind for stage in plan.stages] == ["level"] * 3
    assert [len(stage.rows) for stage in plan.stages] == [5, 9, 0]
    assert sum(stage.count for stage in plan.stages) == POSITIONS
    assert "stage 1, level: every 4. row and column" in query.explain()
    assert "within 0.001 s: stages as far as there is time" in query.explain()
    assert query.estimate().seconds == query.estimate().high == 0.001
    long = con.sql(f"{FINE} WITHIN 1000 SECONDS", {"img": pixels}).estimate()
    assert long.high < 100


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (3, 3), (7, 30)])
def test_levels_hold_every_position_once(shape: tuple[int, int]) -> None:
    from krypton.ir.occlusions import Grid
    from krypton.ir.plan import Approximation
    from krypton.planner.stages import plan_stages

    grid = Grid(shape, (1, 1), (1, 1))
    stages = plan_stages(grid, Approximation(within=1.0), exact=True)
    assert sum(stage.count for stage in stages) == grid.count
    assert all(isinstance(stage, Stage) and stage.count > 0 for stage in stages)


@pytest.mark.usefixtures("few")
def test_what_is_known_is_not_computed_again(net: nn.Module, pixels: NDArray[np.uint8], exact: Heatmap) -> None:
    text = f"{FINE} WITHIN 1000 SECONDS"
    with krypton.connect() as con:
        con.register_model("net", net, input_shape=SHAPE, mean=0.5, std=0.25, labels=LABELS)
        first, second = run(con, text, img=pixels), run(con, text, img=pixels)
        assert second.info["reused"] == int(first.exact.sum())
        assert int(second.exact.sum()) > 1.5 * int(first.exact.sum())
        maps = [run(con, text, img=pixels) for _ in range(3)]
    assert maps[-1].exact.all()
    assert torch.allclose(maps[-1].logits, exact.logits, atol=1e-5)


@pytest.mark.usefixtures("few")
def test_a_map_that_goes_on_with_what_is_known_is_better_and_its_quality_measured(steep: krypton.Connection) -> None:
    text, picture = f"{GOAL} WITHIN 1000 SECONDS", pictures(1)[0]
    whole = run(steep, GOAL, img=picture)
    steep.sql("SET krypton.reuse_results = true")
    first, second = run(steep, text, img=picture), run(steep, text, img=picture)
    assert second.info["reused"] == int(first.exact.sum())
    assert second.quality.positions > 0
    assert compare(second, whole).relative_rmse < 0.8 * compare(first, whole).relative_rmse
    again = run(steep, f"{text} WITH (ssim => 0.5)", img=picture)
    assert again.info["goal"].startswith("SSIM 0.5 is reached with")


@pytest.mark.usefixtures("few")
def test_a_stream_of_masks_ends_with_all_that_was_computed(
    con: krypton.Connection, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krypton.answers._COPYING", 1e-9)  # after the first map there is no time for another
    masks = torch.rand(130, *SHAPE[1:], generator=torch.Generator().manual_seed(0)) < 0.2
    text = "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m WITHIN 1000 SECONDS"
    first, last = con.sql(text, {"img": pixels, "m": masks}).stream()
    assert 0 < int(first.known.sum()) < 50 < int(last.known.sum()) < 130


@pytest.mark.usefixtures("few")
def test_a_stream_is_whole_from_the_first_map_on(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    *earlier, last = con.sql(f"{FINE} WITHIN 1000 SECONDS", {"img": pixels}).stream()
    for partial in earlier:
        assert np.isfinite(partial.heatmap).all()
        assert partial.exact[partial.known].all() or partial.complete
    assert last.complete


def test_several_images_share_the_time(con: krypton.Connection, scan: Path) -> None:
    con.sql(f"CREATE TABLE three AS SELECT unnest(['{scan}', '{scan}', '{scan}']) AS path")
    clocks: list[float] = []
    text = FINE.replace("$img", "(SELECT path FROM three)")
    query = con.sql(f"{text} WITHIN 30 SECONDS")
    original = query._clock
    query._clock = lambda *given: clocks.append(original(*given).seconds) or original(*given)
    heatmaps = query.run()
    assert [heatmap.exact.all().item() for heatmap in heatmaps] == [True] * 3
    assert clocks[0] == pytest.approx(10)
    assert clocks[0] < clocks[1] < clocks[2] < 30
    with pytest.raises(ExecutionError, match=r"its part of the time for 3 images.* Write WITHIN 0\.\d+ SECONDS or more"):
        con.sql(f"{text} WITHIN 0.000003 SECONDS").run()
