"""`krypton demo`, on a coarser grid than users get."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from krypton.cli import demo
from krypton.cli.main import main


@pytest.fixture
def coarse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the demo asks for 5 × 5 positions, and leaves malloc as the other tests need it."""
    monkeypatch.setattr(demo, "_QUERY", demo._QUERY.replace("STRIDE 4", "STRIDE 36"))
    monkeypatch.setattr(demo, "_BATCHES", (8, 16))
    monkeypatch.setattr(demo, "_keep_memory", lambda: None)
    return folder


def test_demo_explains_races_and_writes_a_picture(coarse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in coarse.iterdir()}
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for said in ("EXPLAIN OCCLUSION OF", "25 positions", "layer1.0.conv1", "predicted class", "speed-up", "x over naive"):
        assert said in out
    difference = float(out.rsplit("at most ", 1)[1])
    assert difference < 1e-4
    assert {path.name for path in coarse.iterdir()} == before | {"out"}
    with Image.open("out/retina.png") as picture:
        assert min(picture.size) > 300


def test_slow_computer_races_on_a_sample_and_is_told(
    coarse: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_LONGEST_NAIVE", 0.0)
    monkeypatch.setattr(demo, "_SAMPLED_ROWS", 2)
    monkeypatch.setattr(demo, "_time_exact", lambda *_: 1.0)
    assert main(["demo", "--out", "elsewhere"]) == 0
    out = capsys.readouterr().out
    assert "scaled from 10 positions in evenly drawn rows" in out
    assert Path("elsewhere/retina.png").exists()


def test_folder_that_cannot_be_made_is_said_at_once(coarse: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").touch()
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "the folder 'out' cannot be made" in err


def test_installation_without_the_model_says_so(
    coarse: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _: coarse / "krypton")
    assert main(["demo"]) == 1
    assert "ExecutionError: this installation of Krypton lacks the demo's model" in capsys.readouterr().err
