"""Queries on the way: partial maps, progress, and what an interrupt leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from session_net import SMALL, run

import krypton
from krypton.executor import Batch
from krypton.query import Query

# ---------------------------------------------------------------------------------------------------- streams


def test_a_stream_fills_up(query: Query, con: krypton.Connection, pixels: NDArray[np.uint8]) -> None:
    wanted = query.run()
    parts = list(con.sql(f"{SMALL} MODE NAIVE WITH (batch => 4)", {"img": pixels}).stream())
    known = [int(part.known.sum()) for part in parts]
    assert known == sorted(set(known))
    assert known[0] == 4
    assert parts[-1].complete
    assert torch.allclose(parts[-1].logits, wanted.logits, atol=1e-5)
    for part in parts:
        assert torch.equal(part.exact, part.known)
        assert torch.allclose(part.logits[part.known], wanted.logits[part.known], atol=1e-5)
        assert np.isfinite(part.heatmap).all()
    assert not torch.allclose(parts[0].logits, wanted.logits, atol=1e-5)


def test_from_a_twentieth_of_the_work_on_a_stream_has_whole_coarse_maps(
    con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    text = "EXPLAIN OCCLUSION OF $img USING MODEL net PATCH 4 STRIDE 1 SCORE LOGIT WITH (batch => 2)"
    exact = run(con, text, img=pixels)
    answers = con.sql(text, {"img": pixels})._steps(0)
    first = next(answer for answer in answers if answer.done >= 0.05 * answer.total).snapshot()
    assert first.known.float().mean() < 0.06
    assert np.isfinite(first.heatmap).all()
    rows, columns = first.known.nonzero().T
    height, width = first.known.shape
    for places, size in ((rows, height), (columns, width)):
        assert {0, size - 1} <= {*places.tolist()}
        assert np.diff(sorted({*places.tolist()})).max() <= size / 2
    spread, error = np.ptp(exact.heatmap), np.abs(first.heatmap - exact.heatmap)
    assert np.median(error) < np.median(np.abs(exact.heatmap - np.mean(exact.heatmap))) < spread
    answers.close()


def test_streamed_maps_of_masks_are_unknown_where_nothing_was_computed(
    con: krypton.Connection, pixels: NDArray[np.uint8]
) -> None:
    masks = torch.rand(9, 20, 24, generator=torch.Generator().manual_seed(0)) < 0.2
    text = "EXPLAIN OCCLUSION OF $img USING MODEL net MASKS $m MODE NAIVE WITH (batch => 2)"
    first, *_, last = con.sql(text, {"img": pixels, "m": masks}).stream()
    assert np.array_equal(np.isfinite(first.heatmap), first.known.numpy())
    assert not first.complete
    assert last.complete


def test_closing_a_stream_stops_the_run(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    counting = _Counting(query, monkeypatch, on_close=lambda: closed.append(True))
    stream = query.stream()
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert counting.batches == 1


class _Counting:
    """An executor of one occlusion at a time that notes how far it came, and may be interrupted."""

    def __init__(
        self, query: Query, monkeypatch: pytest.MonkeyPatch, on_close: Any = None, stop_after: int | None = None
    ) -> None:
        self.batches = 0
        self.base_logits = torch.tensor([0.0, 1.0, 2.0, 3.0])
        self.seconds, self.actual, self.precision, self.reused = 0.1, {0: 1.0}, None, 0
        self.learned: dict[str, float] = {}
        self.goal = ""
        self._stop_after = stop_after
        self._on_close = on_close
        self._query = query
        monkeypatch.setattr("krypton.query.execute", lambda *args, **kwargs: self)

    def __iter__(self) -> Iterator[Batch]:
        for index in range(self._query.plan().occlusions.count):
            if index == self._stop_after:
                raise KeyboardInterrupt
            self.batches += 1
            yield Batch(torch.tensor([index]), self.base_logits[None] + index)

    def close(self) -> None:
        if self._on_close:
            self._on_close()


# ---------------------------------------------------------------------------------------------------- progress, interrupts


def test_progress_is_reported(query: Query, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    query.run(progress=lambda done, total: seen.append((done, total)))
    total = query.plan().occlusions.count
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)
    query.run(progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert f"{total}/{total}" in err


def test_an_interrupt_keeps_what_is_done(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    _Counting(query, monkeypatch, on_close=lambda: closed.append(True), stop_after=5)
    with pytest.raises(KeyboardInterrupt, match="5 of 20 positions were done"):
        query.run()
    assert closed == [True]
    assert query.partial is not None
    assert query.partial.known.ravel().tolist() == [True] * 5 + [False] * 15
    assert np.isfinite(query.partial.heatmap).all()


def test_an_interrupt_before_anything_is_done(query: Query, monkeypatch: pytest.MonkeyPatch) -> None:
    _Counting(query, monkeypatch, stop_after=0)
    with pytest.raises(KeyboardInterrupt, match="before any"):
        query.run()
    assert query.partial is None


def test_an_interrupt_leaves_a_partial_file_and_not_the_one_asked_for(
    con: krypton.Connection, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    query = con.sql(f"{SMALL} INTO '{tmp_path}/heat.npz'", {"img": pixels})
    _Counting(query, monkeypatch, stop_after=7)
    with pytest.raises(KeyboardInterrupt, match=r"heat\.partial\.npz"):
        query.run()
    assert [path.name for path in tmp_path.iterdir()] == ["heat.partial.npz"]
    assert np.load(tmp_path / "heat.partial.npz")["known"].sum() == 7


def test_an_interrupt_leaves_a_partial_table(
    con: krypton.Connection, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = con.sql(f"{SMALL} INTO TABLE heat", {"img": pixels})
    _Counting(query, monkeypatch, stop_after=7)
    with pytest.raises(KeyboardInterrupt, match="table heat_partial"):
        query.run()
    assert con.sql("SHOW TABLES").fetchall() == [("heat_partial",)]
    assert con.sql("SELECT count(*) FROM heat_partial").fetchall() == [(7,)]
