"""Tuning: which settings are tried, curves against brute force, and that the cheapest that reaches the target is chosen."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from krypton.ir.occlusions import Grid
from krypton.ir.plan import Approximation
from krypton.planner.tuning import EXACT, FITS, KEEPS, TAUS, WORTH, Curve, Sampled, candidates, choose, curve

IMAGES = 5
unit = st.floats(0, 1)


def grid(side: int) -> Grid:
    return Grid((side, side), (1, 1), (1, 1))


def sampled(mean: float, cost: float, spread: float = 0.0, **setting: float) -> Sampled:
    """A setting whose images lie evenly around a mean, all with one cost."""
    return Sampled(Approximation(**setting), tuple(mean + spread * (i / 2 - 1) for i in range(IMAGES)), (cost,) * IMAGES)


# ---------------------------------------------------------------------------------------------------- candidates


def test_the_papers_values_of_tau_are_tried_and_cuts_and_drill_downs_beside_them() -> None:
    options = [setting.options() for setting in candidates(grid(37))]
    assert [found["tau"] for found in options if "tau" in found] == list(TAUS)
    assert {"keep": KEEPS[0]} in options
    assert {"drilldown": 0.25, "speedup": 3.0} in options
    assert {"keep": 0.99, "drilldown": 0.1, "speedup": 5.0} in options


@given(st.integers(1, 12))
def test_a_small_grid_leaves_out_what_it_is_too_small_for(side: int) -> None:
    from krypton.planner.stages import plan_stages

    for setting in candidates(grid(side)):
        plan_stages(grid(side), setting, exact=True)  # or a BindError
        assert setting.keep is None or side * side >= 16


# ---------------------------------------------------------------------------------------------------- curves


@given(st.lists(unit, min_size=1, max_size=7), st.sampled_from(["tau", "keep"]))
def test_a_fitted_curve_never_falls_and_stays_near_the_means(means: list[float], parameter: str) -> None:
    values = (TAUS if parameter == "tau" else KEEPS)[::-1][: len(means)]
    means = sorted(means[: len(values)])
    found = Curve(parameter, values, tuple(means))  # type: ignore[arg-type]
    fitted = [found.at(float(value)) for value in np.linspace(values[0], values[-1], 30)]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(fitted))
    for value, mean in zip(values, means, strict=True):
        assert abs(found.at(value) - mean) <= FITS + 1e-9


@given(st.lists(unit, min_size=2, max_size=7), unit, st.sampled_from(["tau", "keep"]))
def test_the_value_at_the_target_is_the_least_that_reaches_it(means: list[float], target: float, parameter: str) -> None:
    values = (TAUS if parameter == "tau" else KEEPS)[::-1][: len(means)]
    found = Curve(parameter, values, tuple(means[: len(values)]))  # type: ignore[arg-type]
    value = found.reach(target)
    if value is None:
        assert found.at(values[-1]) < target
        return
    assert values[0] <= value <= values[-1]
    assert found.at(value) >= target - 1e-6
    for less in np.linspace(values[0], value, 20)[:-1]:
        assert found.at(float(less)) <= target + 1e-6 or value == values[0]


def test_a_polynomial_of_degree_two_is_found_again() -> None:
    values = TAUS[::-1]
    means = tuple(0.2 + 1.5 * tau - 0.7 * tau**2 for tau in values)
    found = Curve("tau", values, means)
    assert found.coefficients == pytest.approx((0.2, 1.5, -0.7))
    assert found.at(0.55) == pytest.approx(0.2 + 1.5 * 0.55 - 0.7 * 0.55**2)


def test_beyond_its_peak_a_polynomial_is_level_and_one_that_does_not_fit_is_not_used() -> None:
    peaked = Curve("tau", TAUS[::-1], tuple(0.99 - 0.2 * max(0.85 - tau, 0) ** 2 for tau in TAUS[::-1]))
    assert peaked.coefficients is not None
    assert peaked.at(1.0) == pytest.approx(peaked.at(0.97), abs=1e-3)
    saturated = Curve("tau", TAUS[::-1], (0.5, 0.98, 0.99, 1.0, 1.0, 1.0, 1.0))
    assert saturated.coefficients is None
    assert saturated.at(0.45) == pytest.approx(0.74)


def test_means_that_fall_are_made_to_rise() -> None:
    found = Curve("tau", (0.4, 0.5), (0.9, 0.8))
    assert found.at(0.4) == found.at(0.5) == pytest.approx(0.85)


def test_there_is_no_curve_of_what_was_not_tried() -> None:
    assert curve([sampled(0.9, 0.5, drilldown=0.25, speedup=3)], "tau") is None


# ---------------------------------------------------------------------------------------------------- the choice

CUTS = [sampled(mean, cost, tau=tau) for tau, mean, cost in ((1, 1, 1), (0.8, 0.96, 0.8), (0.6, 0.8, 0.6), (0.4, 0.5, 0.4))]
DRILL = sampled(0.93, 0.3, drilldown=0.25, speedup=3.0)


def test_the_cheapest_that_reaches_the_target_is_chosen() -> None:
    assert choose([*CUTS, DRILL], 0.9) is DRILL
    found = choose([*CUTS, DRILL], 0.95)
    assert found.setting.tau == pytest.approx(0.787, abs=0.02)  # between two that were sampled
    assert found.ssim[0] == pytest.approx(0.95, abs=0.02)
    assert found.typical_cost == pytest.approx(0.79, abs=0.02)


def test_nothing_that_is_as_slow_as_the_exact_map_is_chosen() -> None:
    found = choose([sampled(0.99, 1.2, keep=0.999), sampled(0.95, 0.98, drilldown=0.25, speedup=3.0)], 0.9)
    assert found.setting == EXACT
    assert set(found.ssim) == set(found.cost) == {1.0}


def test_a_good_mean_does_not_outweigh_images_that_miss_the_target() -> None:
    uneven = sampled(0.9, 0.2, spread=0.2, drilldown=0.1, speedup=5.0)
    assert choose([uneven, DRILL], 0.9) is DRILL
    assert choose([uneven], 0.9).setting == EXACT


@given(st.lists(st.tuples(unit, unit, st.floats(0, 0.3)), min_size=1, max_size=8), st.floats(0.01, 1))
def test_whatever_is_chosen_keeps_the_promise_on_the_sample(rows: list[tuple[float, float, float]], target: float) -> None:
    entries = [
        sampled(mean, cost, spread, drilldown=0.01 * (number + 1), speedup=2.0)
        for number, (mean, cost, spread) in enumerate(rows)
    ]
    found = choose(entries, target)
    assert found.mean >= target - 1e-9
    assert sum(ssim < target - 0.05 for ssim in found.ssim) <= 1  # of five images
    even = [entry for entry in entries if len({*entry.ssim}) == 1]
    cheaper = [entry for entry in even if entry.typical_cost < min(found.typical_cost, WORTH) and entry.mean >= target]
    assert not cheaper


def test_a_sample_that_just_does_is_not_enough_for_other_images() -> None:
    """Few images that differ say less of others than many, or than few that are alike."""

    def chosen(count: int, spread: float) -> Approximation:
        ssim = tuple(0.92 + spread * (number / (count - 1) - 0.5) for number in range(count))
        entry = Sampled(Approximation(drilldown=0.1, speedup=5.0), ssim, (0.3,) * count)
        assert sum(value >= 0.85 for value in ssim) >= 0.8 * count
        return choose([entry], 0.9).setting

    assert chosen(4, 0.12) == EXACT
    assert chosen(30, 0.12) != EXACT
    assert chosen(4, 0.02) != EXACT


@given(st.floats(0.001, 0.999))
def test_tau_and_keep_are_rounded_to_the_careful_side(target: float) -> None:
    keeps = [sampled(mean, 0.5, keep=keep) for keep, mean in ((0.9, 0.3), (0.99, 0.8), (0.9995, 1.0))]
    found = choose(keeps, target).setting
    reached = curve(keeps, "keep").reach(target)  # type: ignore[union-attr]
    assert found.keep is not None
    assert reached is not None
    assert found.keep >= reached - 1e-9
    assert len(f"{found.keep:.10f}".rstrip("0")) <= 7
