"""Estimates corrected by finished queries: whose factor counts for whom, and how sure one may be."""

from __future__ import annotations

import random

import pytest

from krypton.planner.correction import Finished, correct


def finished(model: str, once: float, each: float, positions: int, noise: float = 1.0) -> Finished:
    """A query that took `once` + `each` · positions seconds; the cost model says 1 ms per position, and 50 ms once."""
    parts = {"views": 50.0, "deltas": 1.0 * positions}
    return Finished(model, parts, (once + each * positions) * noise)


def asked(positions: int) -> dict[str, float]:
    return {"views": 50.0, "deltas": 1.0 * positions}


def width(model: str, known: list[Finished]) -> float:
    found = correct(asked(500), model, known)
    return found.high / found.low


def test_without_finished_queries_the_prediction_stands_and_nobody_is_sure() -> None:
    found = correct(asked(500), "net", [])
    assert found.seconds == pytest.approx(0.55)
    assert found.low < 0.55 / 1.7
    assert found.high > 0.55 * 1.7


def test_one_model_is_the_line_of_least_squares_through_its_queries() -> None:
    """The papers' regression: seconds on the number of positions, which the cost model has wrong both once and for each."""
    known = [finished("net", 0.08, 0.0015, positions) for positions in (40, 60, 100, 200, 400, 900, 1500)]
    for positions in (50, 300, 3000):
        assert correct(asked(positions), "net", known).seconds == pytest.approx(0.08 + 0.0015 * positions, rel=0.04)


def test_a_slower_device_is_slower_for_models_that_it_never_ran() -> None:
    known = [finished(model, 0.15, 0.003, 300) for model in ("a", "b", "c") for _ in range(4)]
    assert correct(asked(500), "unseen", known).seconds == pytest.approx(1.65, rel=0.05)


def test_each_model_has_its_own_factor() -> None:
    known = [finished("a", 0.05, 0.001, 300) for _ in range(8)] + [finished("b", 0.065, 0.0013, 300) for _ in range(8)]
    assert correct(asked(500), "a", known).seconds == pytest.approx(0.55, rel=0.05)
    assert correct(asked(500), "b", known).seconds == pytest.approx(0.715, rel=0.05)
    assert 0.56 < correct(asked(500), "unseen", known).seconds < 0.70


def test_parts_are_corrected_apart() -> None:
    known = [finished("net", 0.05, 0.002, positions) for positions in (50, 100, 300, 1000, 2000)]
    known += [Finished("net", {"inference": 1000.0}, 1.0) for _ in range(5)]
    assert correct(asked(3000), "net", known).seconds == pytest.approx(6.05, rel=0.05)
    assert correct({"inference": 3000.0}, "net", known).seconds == pytest.approx(3.0, rel=0.05)


def test_a_query_that_something_disturbed_counts_little() -> None:
    known = [finished("net", 0.05, 0.001, positions) for positions in (100, 200, 300, 400, 500)]
    disturbed = [*known, finished("net", 0.05, 0.001, 300, noise=40.0)]
    assert correct(asked(500), "net", disturbed).seconds == pytest.approx(0.55, rel=0.1)


def test_the_interval_narrows_with_what_is_known_and_widens_with_its_spread() -> None:
    steady = [finished("net", 0.05, 0.001, 300) for _ in range(12)]
    generator = random.Random(0)
    scattered = [finished("net", 0.05, 0.001, 300, generator.uniform(0.6, 1.6)) for _ in range(12)]
    assert width("net", steady) < width("other", steady) < width("other", [])
    assert width("net", steady[:2]) < width("net", [])
    assert width("net", steady) < width("net", scattered)


def test_nobody_is_sure_whether_low_precision_has_to_be_mended() -> None:
    parts = {"deltas": 500.0, "precision": 500.0}
    known = [Finished("net", parts, 1.0) for _ in range(12)] + [Finished("net", asked(500), 0.55) for _ in range(12)]
    found = correct(parts, "net", known)
    assert found.high / found.low > 1.1 * width("net", known)


def test_what_a_cut_leaves_is_learnt_and_says_nothing_of_queries_without() -> None:
    plain = [Finished("net", asked(500), 0.55) for _ in range(6)]
    known = plain + [Finished("net", {"views": 50.0, "cut": 400.0}, 0.65) for _ in range(6)]  # a half more than was thought
    assert correct({"views": 50.0, "cut": 300.0}, "net", known).seconds == pytest.approx(0.5, rel=0.05)
    assert correct(asked(300), "net", known).seconds == pytest.approx(0.35, rel=0.05)


def test_nine_of_ten_queries_end_within_the_interval() -> None:
    generator = random.Random(1)
    inside = 0
    for _ in range(100):
        factor = generator.lognormvariate(0, 0.3)
        known = [
            finished("net", 0.05, 0.001, generator.randint(100, 900), factor * generator.lognormvariate(0, 0.08))
            for _ in range(10)
        ]
        actual = 0.55 * factor * generator.lognormvariate(0, 0.08)
        found = correct(asked(500), "net", known)
        inside += found.low <= actual <= found.high
    assert 80 <= inside <= 99


def test_what_takes_no_time_is_no_reason_to_fail() -> None:
    assert correct({}, "net", [Finished("net", {}, 0.0)]).seconds == 0
    assert correct(asked(10), "net", [Finished("net", {"deltas": 0.0}, 1.0), Finished("net", {"deltas": 5.0}, 0.0)]).seconds > 0
