"""Stages of approximate plans: the coarse lattice against brute force, counts, tilings, JSON and mistakes."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from support.judge import settings_of
from support.small import captured_model

from krypton.errors import BindError, PlanError
from krypton.ir.occlusions import Grid, Masks
from krypton.ir.plan import Approximation, QueryPlan, Stage
from krypton.ir.serde import plan_from_json, plan_to_json
from krypton.ir.verify import verify_plan
from krypton.planner.explain import explain
from krypton.planner.optimizer import plan_query
from krypton.planner.stages import SLACK, coarse_lattice, evenly, first_stride, plan_stages

FINE = Grid((19, 16), (3, 3), (1, 1))
DRILL = Approximation(drilldown=0.1, speedup=3.0, quality_share=0.05)


def planned(approximation: Approximation = DRILL, grid: Grid = FINE, name: str = "residual", **values: object) -> QueryPlan:
    settings = settings_of({"disabled_rules": "full_when_cheaper"} | values)
    return plan_query(captured_model(name), grid, mode="approximate", approximation=approximation, settings=settings)


@given(st.floats(0, 0.9), st.floats(1, 30))
def test_the_first_stride_gives_the_speed_up_when_known_values_are_kept(share: float, speedup: float) -> None:
    assume(share * speedup < 0.999)
    coarse = first_stride(share, speedup) ** -2
    assert 1 / (coarse + share * (1 - coarse)) == pytest.approx(speedup)
    assert first_stride(share, speedup) <= math.sqrt(speedup / (1 - share * speedup)) + 1e-9  # equation 38, which repeats some


@pytest.mark.parametrize(("share", "speedup"), [(0.5, 2), (1, 1), (0.25, 4.1)])
def test_a_second_stage_that_takes_longer_than_allowed_is_refused(share: float, speedup: float) -> None:
    with pytest.raises(BindError, match=r"contradict each other.*below 1"):
        first_stride(share, speedup)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 0.6), st.floats(1, 8))
def test_the_lattice_is_the_finest_that_reaches_the_speed_up(height: int, width: int, share: float, speedup: float) -> None:
    assume(share * speedup < 1)
    grid = Grid((height, width), (1, 1), (1, 1))

    def reached(down: int, across: int) -> float:
        coarse = len({*range(0, height, down), height - 1}) * len({*range(0, width, across), width - 1})
        return height * width / (coarse + share * (height * width - coarse))

    steps = range(1, max(height, width) + 1)
    every = [(a, b) for a in steps for b in steps if abs(a - b) <= 1]
    able = [pair for pair in every if reached(*pair) >= SLACK * speedup]
    if not able:
        with pytest.raises(BindError, match=rf"allows a speed-up of at most {max(reached(*pair) for pair in every):.2f}"):
            coarse_lattice(grid, share, speedup)
        return
    rows, columns = coarse_lattice(grid, share, speedup)
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, height - 1, 0, width - 1)
    assert list(rows) == sorted(set(rows))
    coarse = len(rows) * len(columns)
    assert height * width / (coarse + share * (height * width - coarse)) == min(reached(*pair) for pair in able)


def test_the_default_on_the_papers_grid_is_every_third_row_and_column() -> None:
    grid = Grid((224, 224), (16, 16), (4, 4))
    rows, columns = coarse_lattice(grid, 0.25, 3.0)
    assert rows == columns == evenly(53, 3) == (*range(0, 52, 3), 52)


def test_steps_are_multiples_of_the_stride_inside_the_region() -> None:
    grid = Grid((64, 64), (8, 8), (2, 4), region=(10, 12, 40, 50))
    (coarse, *_) = plan_stages(grid, DRILL, exact=True)
    assert {grid.tops[row] % 2 for row in coarse.rows} == {0}
    assert (grid.tops[coarse.rows[0]], grid.tops[coarse.rows[-1]]) == (10, 42)
    assert (grid.lefts[coarse.columns[0]], grid.lefts[coarse.columns[-1]]) == (12, 52)


@given(st.integers(2, 25), st.integers(2, 25), st.floats(0, 0.4), st.floats(1, 2), st.floats(0, 1), st.booleans())
def test_stages_add_up(height: int, width: int, share: float, speedup: float, quality: float, exact: bool) -> None:
    grid = Grid((height, width), (1, 1), (1, 1))
    approximation = Approximation(drilldown=share, speedup=speedup, quality_share=quality)
    try:
        stages = {stage.kind: stage for stage in plan_stages(grid, approximation, exact=exact)}
    except BindError:
        assume(False)
    held_out = stages.get("hold_out", Stage("hold_out", 0)).count
    rest = grid.count - stages["coarse"].count - stages["refine"].count
    rough = rest if exact else grid.count
    assert held_out == min(math.ceil(quality * grid.count), rough)
    assert abs(stages["interpolate"].count - rest * (1 - held_out / max(rough, 1))) < 0.51
    assert stages["interpolate"].computed == 0


def test_without_a_drill_down_every_position_is_computed() -> None:
    cut = Approximation(tau=0.5, quality_share=0.1)
    assert plan_stages(FINE, cut, exact=False) == (Stage("every", FINE.count), Stage("hold_out", 24))
    assert plan_stages(FINE, cut, exact=True) == (Stage("every", FINE.count),)


def test_masks_have_no_grid_to_drill_down_on() -> None:
    with pytest.raises(BindError, match="drilldown needs a grid"):
        plan_stages(Masks(torch.ones(3, 8, 8, dtype=torch.bool)), DRILL, exact=True)


def test_a_plan_with_stages_survives_json() -> None:
    plan = planned()
    assert plan.kind == "approximate"
    assert [stage.kind for stage in plan.stages] == ["coarse", "refine", "hold_out", "interpolate"]
    assert plan_from_json(plan_to_json(plan)) == plan


def test_without_a_captured_model_the_stages_are_the_same() -> None:
    naive = plan_query(None, FINE, mode="approximate", approximation=DRILL, reason="no graph")
    assert (naive.kind, naive.tensor) == ("approximate", None)
    assert [(stage.kind, stage.count) for stage in naive.stages] == [(stage.kind, stage.count) for stage in planned().stages]
    assert plan_from_json(plan_to_json(naive)) == naive


def test_coarse_positions_have_tiles_of_their_own() -> None:
    plan = planned()
    coarse = plan.stages[0]
    tiles = coarse.tiling.tiles(FINE, (coarse.rows, coarse.columns))
    found = sorted(index for tile in tiles for index in tile.indices)
    assert found == [row * FINE.shape[1] + column for row in coarse.rows for column in coarse.columns]
    for tile in tiles:
        boxes = FINE.rectangles().reshape(-1, 4)[list(tile.indices)]
        assert (tile.rows.start, tile.columns.start) == tuple(boxes[:, :2].amin(0).tolist())
        assert (tile.rows.stop, tile.columns.stop) == tuple((boxes[:, :2] + boxes[:, 2:]).amax(0).tolist())


def test_explain_shows_the_stages_and_what_they_save() -> None:
    plan, exact = planned(), plan_query(captured_model("residual"), FINE, settings=settings_of())
    lines = [line for line in explain(plan).splitlines() if line.startswith("stage ")]
    assert [line.split(":")[0] for line in lines] == [
        "stage 1, coarse",
        "stage 2, refine",
        "stage 3, hold out",
        "stage 4, interpolate",
    ]
    assert plan.computed == sum(stage.count for stage in plan.stages if stage.kind != "interpolate")
    assert plan.computed < exact.computed == FINE.count
    assert "stage" not in explain(exact)
    naive = plan_query(None, FINE, mode="approximate", approximation=DRILL)
    assert f"the model itself on {naive.computed} occluded images" in explain(naive)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ()}, "has stages when, and only when"),
        ({"kind": "exact"}, "has stages when, and only when"),
        ({"approximation": None}, "has stages when, and only when"),
        ({"stages": (Stage("finest", 3),)}, "unknown stage"),  # type: ignore[arg-type]
        ({"stages": (Stage("refine", 3),)}, "begins with all positions or coarse ones"),
        ({"stages": (Stage("every", 3), Stage("interpolate", 3))}, "only between coarse positions"),
        ({"stages": (Stage("coarse", 4, (0, 9), (0, 9)),)}, "from the first to the last"),
        ({"stages": (Stage("coarse", 4, (0, 16), (0, 13)),)}, "every coarse position exactly once"),
    ],
)
def test_plans_whose_stages_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        verify_plan(dataclasses.replace(planned(), **change))  # type: ignore[arg-type]
