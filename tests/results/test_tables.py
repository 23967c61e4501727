"""Tables: a row per known occlusion, with the numbers of the map."""

from __future__ import annotations

import sys
from collections.abc import Callable

import duckdb
import pytest
import torch

from krypton.errors import BindError
from krypton.results import Heatmap
from krypton.results.tables import columns

NAMES = ["image", "class", "row", "column", "top", "left", "height", "width", "score", "drop", "logit", "exact"]


def test_rows_are_the_known_positions_of_the_grid(make_heatmap: Callable[..., Heatmap]) -> None:
    known = torch.ones(7, 7, dtype=torch.bool)
    known[0, 0] = known[3, 2] = False
    heatmap = make_heatmap(known=known, labels=("cat", "dog", "lion"))
    rows = heatmap.to_rows()
    assert len(rows) == 47
    assert all(list(row) == NAMES for row in rows)
    for row in rows:
        y, x = row["row"], row["column"]
        assert [row["top"], row["left"], row["height"], row["width"]] == [3 * y, 4 * x, 6, 8]
        assert row["score"] == heatmap.heatmap[y, x]
        assert row["drop"] == heatmap.drop()[y, x]
        assert row["logit"] == heatmap.logits[y, x, 0]
        assert (row["image"], row["class"]) == ("image", "cat")
    assert {(0, 0), (3, 2)}.isdisjoint((row["row"], row["column"]) for row in rows)


def test_a_mask_is_a_row_with_its_bounding_box(make_heatmap: Callable[..., Heatmap], overlapping_masks: torch.Tensor) -> None:
    rows = make_heatmap(masks=overlapping_masks).to_rows()
    assert [(row["row"], row["column"]) for row in rows] == [(index, 0) for index in range(5)]
    assert [rows[4][name] for name in ("top", "left", "height", "width")] == [20, 2, 2, 7]


def test_duckdb_reads_the_columns_as_they_are(make_heatmap: Callable[..., Heatmap]) -> None:
    heatmap = make_heatmap()
    with duckdb.connect() as connection:
        connection.register("heat", columns(heatmap))
        result = connection.execute('SELECT count(*), max("drop"), any_value(class) FROM heat').fetchone()
    assert result == (49, heatmap.drop().max(), "class 0")


def test_arrow_is_there_when_pyarrow_is(make_heatmap: Callable[..., Heatmap], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BindError, match="pip install pyarrow"):
        make_heatmap().to_arrow()
    monkeypatch.undo()
    pytest.importorskip("pyarrow")
    assert make_heatmap().to_arrow().column_names == NAMES
