"""ESTIMATE: the statement and the method, what they are founded on, and what a session remembers for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from session_net import LABELS, SHAPE, SmallNet
from torch import Tensor, nn

import krypton
from krypton.errors import ParserError
from krypton.estimates import Estimate, duration


@pytest.fixture
def fresh(net: SmallNet) -> krypton.Connection:
    """A session that no query ran in, and where each computes everything."""
    connection = krypton.connect(config={"reuse_results": False})
    connection.register_model("net", net, input_shape=SHAPE, labels=LABELS)
    return connection


QUERY = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 4 STRIDE 2"
IMAGE = {"img": torch.zeros(SHAPE)}


def estimated(connection: krypton.Connection, clauses: str = "") -> Estimate:
    found = connection.sql(f"ESTIMATE {QUERY} {clauses}", params=IMAGE)
    assert isinstance(found, Estimate)
    return found


def finished(connection: krypton.Connection) -> int:
    return len(connection.profiles.finished("cpu"))


@pytest.mark.parametrize(
    "clauses", ["", "MODE NAIVE", "WITH (tolerance => 0.1)", "MODE APPROXIMATE WITH (ssim => 0.9)", "IN REGION (0, 0, 10, 10)"]
)
def test_every_mode_is_estimated_and_nothing_is_run(clauses: str, fresh: krypton.Connection) -> None:
    found = estimated(fresh, clauses)
    assert found.positions == (16 if "REGION" in clauses else 99)
    assert 0 < found.low < found.seconds < found.high
    assert found.memory_bytes > 0
    assert found.basis == "default profile, no finished queries yet"
    assert finished(fresh) == 0


def test_statement_and_method_say_the_same(fresh: krypton.Connection) -> None:
    assert fresh.sql(QUERY, params=IMAGE).estimate() == estimated(fresh)


def test_estimates_print_as_text() -> None:
    text = str(Estimate(2809, 12.34, 8.2, 150.0, 300 * 2**20, "default profile, no finished queries yet"))
    assert text == (
        "2,809 positions, about 12.3 s, 300 MB of memory beyond the model\n"
        "between 8.2 s and 2.5 min in 90% of cases; founded on: default profile, no finished queries yet"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.034, "34 ms"), (1, "1.0 s"), (119, "119.0 s"), (600, "10.0 min"), (9000, "2.5 h"), (3e5, "3.5 days")],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_finished_queries_correct_the_estimate(fresh: krypton.Connection) -> None:
    before = estimated(fresh)
    query = fresh.sql(QUERY, params=IMAGE)
    for _ in range(3):
        query.run()
    after = estimated(fresh)
    assert after.basis == "default profile, 3 finished queries, 3 of this model"
    assert after.high / after.low < before.high / before.low


def test_a_session_that_saw_everything_take_three_times_as_long_expects_it(fresh: krypton.Connection) -> None:
    from krypton.planner.correction import Finished

    before = estimated(fresh)
    for model in ("a", "b"):
        for part in ("memory", "views", "weights", "tiles", "deltas", "head", "inference"):
            for _ in range(3):
                fresh.profiles.remember("cpu", Finished(model, {part: 1000.0}, 3.0))
    after = estimated(fresh)
    assert after.seconds == pytest.approx(3 * before.seconds, rel=0.1)
    assert after.basis == "default profile, 42 finished queries, none of this model"


def test_models_of_one_architecture_share_what_is_known_whatever_their_names(fresh: krypton.Connection) -> None:
    fresh.sql(QUERY, params=IMAGE).run()
    twin, other = SmallNet(), SmallNet(outputs=7)
    torch.nn.init.zeros_(twin.fc.weight)
    fresh.register_model("twin", twin, input_shape=SHAPE)
    fresh.register_model("other", other, input_shape=SHAPE)
    for name, known in (("twin", "1 finished query, 1 of this model"), ("other", "1 finished query, none of this model")):
        query = fresh.sql(QUERY.replace("MODEL net", f"MODEL {name}"), params=IMAGE)
        assert query.estimate().basis == f"default profile, {known}"


def test_later_sessions_know_what_finished_before(tmp_path: Path, net: SmallNet) -> None:
    for count in (0, 1):
        with krypton.connect(tmp_path / "work.krypton") as con:
            con.register_model("net", net, input_shape=SHAPE)
            assert finished(con) == count
            con.sql(f"{QUERY} MODE NAIVE", params=IMAGE).run()


def test_only_queries_that_end_are_remembered(fresh: krypton.Connection) -> None:
    stream = fresh.sql(f"{QUERY} WITH (batch => 4)", params=IMAGE).stream()
    next(stream)
    stream.close()
    assert finished(fresh) == 0
    list(fresh.sql(QUERY, params=IMAGE).stream())
    assert finished(fresh) == 1


def test_threads_are_estimated_apart(fresh: krypton.Connection) -> None:
    fresh.sql(f"SET krypton.threads = {torch.get_num_threads() + 1}")
    fresh.sql(QUERY, params=IMAGE).run()
    assert estimated(fresh).basis.endswith("1 of this model")
    fresh.sql("RESET krypton.threads")
    assert estimated(fresh).basis.endswith("no finished queries yet")


def test_several_images_take_as_long_as_each_of_them(fresh: krypton.Connection, scan: Path) -> None:
    def of(images: int) -> Estimate:
        paths = ", ".join([f"'{scan}'"] * images)
        text = QUERY.replace("$img", f"(SELECT unnest([{paths}]) AS path)")
        found = fresh.sql(f"ESTIMATE {text}")
        assert isinstance(found, Estimate)
        return found

    one, two, five = of(1), of(2), of(5)
    assert (one.positions, five.positions) == (99, 495)
    assert one.seconds < two.seconds < 2 * one.seconds  # weights are laid out once
    assert five.seconds - two.seconds == pytest.approx(3 * (two.seconds - one.seconds))
    assert one.memory_bytes < five.memory_bytes < 2 * one.memory_bytes


def test_a_model_that_cannot_be_captured_is_estimated_as_it_will_run(fresh: krypton.Connection) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x).mean((2, 3))
            return y if float(x.sum()) > 0 else y + 1

    fresh.register_model("net", Branching(), input_shape=SHAPE)
    assert estimated(fresh).seconds > 0
    fresh.sql(QUERY, params=IMAGE).run()
    assert finished(fresh) == 1


def test_a_naive_query_that_cannot_be_watched_still_runs(fresh: krypton.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise krypton.errors.CaptureError("no")

    monkeypatch.setattr("krypton.graphs.watch", fail)
    fresh.sql(f"{QUERY} MODE NAIVE", params=IMAGE).run()
    assert finished(fresh) == 0
    with pytest.raises(krypton.errors.CaptureError, match="cannot be watched"):
        estimated(fresh, "MODE NAIVE")


def test_calibrate_forgets_what_says_how_wrong_the_earlier_profile_was(
    fresh: krypton.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_CHANNELS", "_OUTPUTS", "_SIDES"):
        monkeypatch.setattr(f"krypton.planner.calibration.{name}", (16,) if name != "_SIDES" else (7,))
    fresh.sql(QUERY, params=IMAGE).run()
    fresh.sql("CALIBRATE")
    basis = estimated(fresh).basis
    assert basis.startswith("CALIBRATE of 2")
    assert basis.endswith("no finished queries yet")


def test_nothing_is_written_by_an_estimate(fresh: krypton.Connection, tmp_path: Path) -> None:
    estimated(fresh, f"INTO '{tmp_path}/heat.png'")
    estimated(fresh, "INTO TABLE maps")
    assert list(tmp_path.iterdir()) == []
    assert fresh.sql("SHOW TABLES").fetchall() == []


def test_mistakes_in_the_query_are_marked(fresh: krypton.Connection) -> None:
    with pytest.raises(krypton.KryptonError, match="choose a smaller PATCH") as caught:
        fresh.sql("ESTIMATE EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 21", params=IMAGE)
    assert "^" in str(caught.value).splitlines()[-1]
    with pytest.raises(ParserError, match="Expected EXPLAIN"):
        fresh.sql("ESTIMATE SELECT 1")
