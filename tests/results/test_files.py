"""Files: what is written can be read back, appears whole or not at all, and bad names are known beforehand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image

from krypton.errors import BindError, ExecutionError
from krypton.results import Heatmap, files
from krypton.results.files import SUFFIXES, check_target, expand_name

Make = Callable[..., Heatmap]


@pytest.mark.parametrize("suffix", list(SUFFIXES))
def test_every_kind_of_file_is_written_and_nothing_else(suffix: str, make_heatmap: Make, tmp_path: Path) -> None:
    path = tmp_path / f"it's a map{suffix.upper()}"
    assert make_heatmap().save(str(path)) == path
    assert path.stat().st_size > 500
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # the umask's permissions, not a temporary's


def test_pictures_are_pictures(make_heatmap: Make, tmp_path: Path) -> None:
    with Image.open(make_heatmap().save(tmp_path / "map.png")) as picture:
        assert picture.format == "PNG"
    assert "<svg" in make_heatmap().save(tmp_path / "map.svg").read_text()


def test_an_archive_holds_all_that_was_known_without_pickles(
    make_heatmap: Make, overlapping_masks: torch.Tensor, tmp_path: Path
) -> None:
    heatmap = make_heatmap(labels=("cat", "Löwe", "c"), info={"seconds": 1.5, "folder": tmp_path})
    with np.load(heatmap.save(tmp_path / "map.npz"), allow_pickle=False) as archive:
        assert np.array_equal(archive["logits"], heatmap.logits)
        assert np.array_equal(archive["base_logits"], heatmap.base_logits)
        assert np.array_equal(archive["positions"], heatmap.positions)
        assert np.array_equal(archive["heatmap"], heatmap.heatmap)
        assert archive["target"] == 0
        assert archive["labels"].tolist() == ["cat", "Löwe", "c"]
        metadata = json.loads(str(archive["metadata"]))
    assert metadata["info"] == {"seconds": 1.5, "folder": str(tmp_path)}
    assert metadata["image_hash"] == heatmap.image.content_hash
    assert metadata["score_kind"] == "probability"
    with np.load(make_heatmap(masks=overlapping_masks).save(tmp_path / "map.npz"), allow_pickle=False) as archive:
        assert np.array_equal(archive["masks"], overlapping_masks)
        assert archive["labels"].size == 0


def test_parquet_holds_the_table(make_heatmap: Make, tmp_path: Path) -> None:
    heatmap = make_heatmap(labels=("cat", "b", "c"))
    path = heatmap.save(tmp_path / "it's.parquet")
    with duckdb.connect() as connection:
        relation = connection.read_parquet(str(path))
        assert relation.columns == list(heatmap.to_rows()[0])
        assert [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()] == heatmap.to_rows()


def test_a_failure_leaves_the_old_file_and_no_half_of_a_new_one(
    make_heatmap: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "map.npz"
    path.write_bytes(b"old")

    def fail(file: object, **arrays: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(ExecutionError, match=r"map\.npz' cannot be written: No space left on device"):
        make_heatmap().save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_existing_files_are_overwritten_only_when_allowed(make_heatmap: Make, tmp_path: Path) -> None:
    path = make_heatmap().save(tmp_path / "map.npz")
    before = path.read_bytes()
    with pytest.raises(ExecutionError, match="exists already"):
        make_heatmap(seed=1).save(path, overwrite=False)
    assert path.read_bytes() == before
    make_heatmap(seed=1).save(path)
    assert path.read_bytes() != before


def test_bad_targets_are_known_before_the_query_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_target(tmp_path / "new.PNG") == tmp_path / "new.PNG"
    assert check_target(str(tmp_path / "new.svg")) == tmp_path / "new.svg"
    with pytest.raises(BindError, match=r'unknown file type "\.pgn"\. Did you mean "\.png"\?.*\.parquet'):
        check_target(tmp_path / "map.pgn")
    with pytest.raises(BindError, match="unknown file type"):
        check_target(tmp_path / "map")
    with pytest.raises(ExecutionError, match=r"there is no folder '.*nowhere'"):
        check_target(tmp_path / "nowhere" / "map.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ExecutionError, match="it is a folder"):
        check_target(tmp_path / "folder.png")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(ExecutionError, match="no permission"):
        files.check_target(tmp_path / "map.png")


@pytest.mark.parametrize(
    ("image", "cls", "expected"),
    [
        ("scans/eye 1.tif", "lion", "out/eye_1-lion.png"),
        ("image", "a/b: c", "out/image-a_b_c.png"),
        ("../..", "..", "out/_-_.png"),
        ("{class}.png", "{image}", "out/class-image.png"),
        ("猫.png", "Löwe", "out/猫-Löwe.png"),
        ("x" * 500 + ".png", "y" * 500, f"out/{'x' * 60}-{'y' * 60}.png"),
    ],
)
def test_names_are_filled_in_as_one_safe_part(image: str, cls: str, expected: str) -> None:
    assert expand_name("out/{image}-{class}.png", image, cls) == expected
    assert expand_name("out/fixed.png", image, cls) == "out/fixed.png"
