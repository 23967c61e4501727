"""Known results: taken by queries that ask for the same, kept however a run ends, and never a wrong answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from session_net import LABELS, SHAPE, SmallNet

import krypton
from krypton import Heatmap
from krypton.executor import engine as engines
from krypton.ir.occlusions import OcclusionTile

QUERY = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 6 STRIDE 2"
POSITIONS = 8 * 10


@pytest.fixture
def fresh(net: SmallNet) -> Iterator[krypton.Connection]:
    with krypton.connect() as con:
        register(con, net)
        yield con


def register(con: krypton.Connection, net: torch.nn.Module, **said: Any) -> None:
    con.register_model("net", net, **({"input_shape": SHAPE, "mean": 0.5, "std": 0.25, "labels": LABELS} | said))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions that incremental plans computed."""
    found: list[int] = []
    original = engines.tile_batches

    def watched(program: Any, tensor: Any, occluder: Any, tiles: Any, *rest: Any, **options: Any) -> Any:
        def noted() -> Iterator[OcclusionTile]:
            for tile in tiles:
                found.extend(tile.indices)
                yield tile

        return original(program, tensor, occluder, noted(), *rest, **options)

    monkeypatch.setattr(engines, "tile_batches", watched)
    return found


def run(con: krypton.Connection, text: str, image: NDArray[np.uint8], **params: Any) -> Heatmap:
    heatmap: Heatmap = con.sql(text, {"img": image, **params}).run()
    return heatmap


def near(one: Heatmap, other: Heatmap) -> bool:
    return bool(torch.allclose(one.logits, other.logits, atol=1e-5))


def test_the_same_query_computes_nothing_again(
    fresh: krypton.Connection, pixels: NDArray[np.uint8], computed: list[int]
) -> None:
    first = run(fresh, QUERY, pixels)
    assert sorted(computed) == list(range(POSITIONS))
    computed.clear()
    second = run(fresh, f"{QUERY} FOR CLASS 'fluid' SCORE LOGIT", pixels)
    assert computed == []
    assert (first.info["reused"], second.info["reused"]) == (0, POSITIONS)
    assert torch.equal(first.logits, second.logits)
    assert second.exact.all()
    assert "80 of 80 positions are known from earlier queries" in second.info["notes"]


@pytest.mark.parametrize("clauses", ["PATCH 6 STRIDE 1", "PATCH 6 STRIDE 4x3", "PATCH 6 STRIDE 3 IN REGION (2, 3, 16, 17)"])
def test_other_grids_of_the_patch_take_what_they_share(
    clauses: str, fresh: krypton.Connection, con: krypton.Connection, pixels: NDArray[np.uint8], computed: list[int]
) -> None:
    text = QUERY.replace("PATCH 6 STRIDE 2", clauses)
    wanted = run(con, text, pixels)
    known = {tuple(box) for box in run(fresh, QUERY, pixels).positions.reshape(-1, 4).tolist()}
    computed.clear()
    heatmap = run(fresh, text, pixels)
    shared = sum(tuple(box) in known for box in wanted.positions.reshape(-1, 4).tolist())
    assert heatmap.info["reused"] == shared > 0
    assert len(computed) == wanted.known.numel() - shared
    assert near(heatmap, wanted)
    assert heatmap.complete
    assert run(fresh, text, pixels).info["reused"] == wanted.known.numel()


@pytest.mark.parametrize("clause", ["FILL BLACK", "FILL NOISE WITH (seed => 2)", "PATCH 6x5", "MODE NAIVE"])
def test_what_is_not_the_same_is_computed(clause: str, fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    run(fresh, f"{QUERY} FILL NOISE WITH (seed => 1)" if "NOISE" in clause else QUERY, pixels)
    text = QUERY.replace("PATCH 6", clause) if "PATCH" in clause else f"{QUERY} {clause}"
    assert run(fresh, text, pixels).info["reused"] == 0


def test_another_image_is_computed(fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    run(fresh, QUERY, pixels)
    assert run(fresh, QUERY, pixels ^ 1).info["reused"] == 0
    assert run(fresh, QUERY, pixels.copy()).info["reused"] == POSITIONS


def test_a_model_that_changed_is_asked_again(con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    net = SmallNet()
    with krypton.connect() as fresh:
        register(fresh, net)
        before = run(fresh, QUERY, pixels)
        with torch.no_grad():
            net.conv1.weight[0, 0, 0, 0] += 0.5
        after = run(fresh, QUERY, pixels)
        assert after.info["reused"] == 0
        assert not near(before, after)
        register(fresh, net, std=0.5)
        assert run(fresh, QUERY, pixels).info["reused"] == 0
        register(fresh, net)
        assert run(fresh, QUERY, pixels).info["reused"] == POSITIONS


def test_a_model_that_says_otherwise_of_the_image_is_asked_again(fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    """Code that no fingerprint sees: what is stored is of another model under the same name."""
    heatmap = run(fresh, QUERY, pixels)
    table = f"{fresh.catalog._schema}.results"
    wrong = (heatmap.base_logits + 0.5).numpy().tobytes()
    fresh.catalog._rows(f"UPDATE {table} SET base = ?", [wrong])
    assert run(fresh, QUERY, pixels).info["reused"] == 0
    assert run(fresh, QUERY, pixels).info["reused"] == POSITIONS


def test_a_model_without_a_fingerprint_is_always_asked(pixels: NDArray[np.uint8]) -> None:
    net = SmallNet()
    net.conv2.register_forward_hook(lambda module, args, output: output * 2)
    with krypton.connect() as fresh:
        register(fresh, net)
        assert [run(fresh, QUERY, pixels).info["reused"] for _ in range(2)] == [0, 0]


def test_a_stream_that_was_closed_is_gone_on_with(
    fresh: krypton.Connection, con: krypton.Connection, pixels: NDArray[np.uint8], computed: list[int]
) -> None:
    stream = fresh.sql(f"{QUERY} WITH (batch => 4)", {"img": pixels}).stream()
    partial = next(stream)
    stream.close()
    done = int(partial.known.sum())
    computed.clear()
    heatmap = run(fresh, QUERY, pixels)
    assert 0 < done <= heatmap.info["reused"] < POSITIONS
    assert len(computed) == POSITIONS - heatmap.info["reused"]
    assert near(heatmap, run(con, QUERY, pixels))


def test_an_interrupted_run_is_gone_on_with(
    fresh: krypton.Connection, con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    query = fresh.sql(f"{QUERY} WITH (batch => 4)", {"img": pixels})
    with pytest.raises(KeyboardInterrupt, match="positions were done"):
        query.run(progress=stop)
    heatmap = run(fresh, QUERY, pixels)
    assert heatmap.info["reused"] == int(query.partial.known.sum()) > 0
    assert near(heatmap, run(con, QUERY, pixels))


def test_later_sessions_go_on_too(tmp_path: Path, net: SmallNet, pixels: NDArray[np.uint8]) -> None:
    for count in (0, POSITIONS):
        with krypton.connect(tmp_path / "work.krypton") as con:
            register(con, net)
            assert run(con, QUERY, pixels).info["reused"] == count


def test_approximate_queries_give_and_take_exact_values_alone(
    fresh: krypton.Connection, con: krypton.Connection, pixels: NDArray[np.uint8], computed: list[int]
) -> None:
    fine = QUERY.replace("STRIDE 2", "STRIDE 1")
    drill = f"{fine} MODE APPROXIMATE WITH (drilldown => 0.1, speedup => 3, quality_share => 0.1)"
    exact = run(con, fine, pixels)
    rough = run(fresh, drill, pixels)
    known = int(rough.exact.sum())
    heatmap = run(fresh, fine, pixels)
    assert heatmap.info["reused"] == known < exact.known.numel()
    assert near(heatmap, exact)
    computed.clear()
    again = run(fresh, drill, pixels)
    assert computed == []
    assert torch.equal(again.exact, rough.exact)
    assert near(again, rough)


def test_cut_values_are_neither_kept_nor_replaced(fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    fresh.sql("SET krypton.disabled_rules = 'full_when_cheaper'")
    fresh.sql("SET krypton.batch = 2")
    cut = f"{QUERY} MODE APPROXIMATE WITH (tau => 0.4, quality_share => 0.2)"
    rough = run(fresh, cut, pixels)
    assert not rough.exact.all()
    exact = run(fresh, QUERY, pixels)
    assert exact.info["reused"] == int(rough.exact.sum())
    again = run(fresh, cut, pixels)
    assert torch.equal(again.exact, rough.exact)
    assert near(again, rough)
    assert again.quality.relative_rmse == pytest.approx(rough.quality.relative_rmse, rel=1e-3)


def test_masks_are_known_as_a_set(fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    masks = torch.rand(9, *SHAPE[1:], generator=torch.Generator().manual_seed(0)) < 0.2
    text = "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m"
    first = run(fresh, text, pixels, m=masks)
    second = run(fresh, text, pixels, m=masks)
    assert second.info["reused"] == 9
    assert torch.equal(first.logits, second.logits)
    assert run(fresh, text, pixels, m=masks[:8]).info["reused"] == 0


def test_naive_queries_neither_give_nor_take(fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    assert [run(fresh, f"{QUERY} {mode}", pixels).info["reused"] for mode in ("MODE NAIVE", "", "MODE NAIVE")] == [0, 0, 0]


def test_plans_and_estimates_say_what_is_known_and_analyze_runs_it_all(
    fresh: krypton.Connection, pixels: NDArray[np.uint8], computed: list[int]
) -> None:
    query, other = (fresh.sql(QUERY, {"img": image}) for image in (pixels, 255 - pixels))
    query.run()
    assert "note: 80 of 80 positions are known from earlier queries" in query.explain()
    assert query.estimate().positions == 0
    assert query.estimate().seconds < other.estimate().seconds
    computed.clear()
    assert "known from" not in query.explain(analyze=True)
    assert len(computed) == POSITIONS


def test_runs_that_reused_teach_nothing(fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    for _ in range(3):
        run(fresh, QUERY, pixels)
    assert "1 finished query" in fresh.sql(QUERY.replace("STRIDE 2", "STRIDE 1"), {"img": pixels}).estimate().basis


@pytest.mark.parametrize("setting", ["reuse_results = false", "debug = true", "results_megabytes = 0"])
def test_it_can_be_switched_off(setting: str, fresh: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    fresh.sql(f"SET krypton.{setting}")
    assert [run(fresh, QUERY, pixels).info["reused"] for _ in range(2)] == [0, 0]


def test_the_oldest_results_go_first(tmp_path: Path) -> None:
    from krypton.catalog import Catalog, StoredResults

    catalog, results = Catalog(tmp_path / "work.krypton"), StoredResults(b"p" * 10, b"l" * 80, b"b" * 10)
    for key in ("a", "b", "a", "c"):
        catalog.put_results(key, results, most_bytes=250)
    assert [catalog.get_results(key) is not None for key in "abc"] == [True, False, True]
    assert catalog.get_results("a") == results
    catalog.close()
