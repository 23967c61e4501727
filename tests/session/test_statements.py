"""Statements other than queries: models, settings, listings, DuckDB's; scripts and parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from session_net import LABELS, SHAPE, SmallNet
from torch import nn

import krypton
from krypton.errors import BindError, CaptureError, CatalogError, ParserError
from krypton.listings import Message, Table
from krypton.settings import SETTINGS


def table(result: object) -> dict[object, tuple[object, ...]]:
    """A table's rows by their first column."""
    assert isinstance(result, Table)
    return {row[0]: row[1:] for row in result.fetchall()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "work.krypton"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    torch.save(SmallNet(), path)
    return path


# ---------------------------------------------------------------------------------------------------- models


def test_models_outlive_the_session(file: Path, pickled: Path, pixels: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    with krypton.connect(file) as con:
        made = con.sql(
            f"CREATE MODEL Eye FROM '{pickled}' INPUT 3x20x24 MEAN (0.5, 0.5, 0.5) STD (0.25, 0.25, 0.25) "
            f"LABELS '{tmp_path}/labels.txt' ACTIVATION NONE TRUSTED"
        )
        assert str(made) == "model Eye: input 3x20x24, outputs 4, none"
        text = "EXPLAIN OCCLUSION OF $img USING MODEL eye FOR CLASS 'drusen' PATCH 8 STRIDE 8"
        first = con.sql(text, {"img": pixels}).run()
    (tmp_path / "labels.txt").unlink()
    with krypton.connect(str(file)) as con:
        query = con.sql(text, {"img": pixels})
        assert con.graphs.captured(query.bound.model).origin == "catalog"
        second = query.run()
        assert torch.equal(first.logits, second.logits)
        assert (second.label, second.activation) == ("drusen", "none")
        assert table(con.sql("SHOW MODELS"))["Eye"][0] == str(pickled)


def test_relative_files_are_found_from_any_folder(
    file: Path, pickled: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(pickled.parent)
    with krypton.connect(file) as con:
        con.sql("CREATE MODEL eye FROM 'net.pt' INPUT 3x20x24 TRUSTED")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with krypton.connect(file) as con:
        assert table(con.sql("DESCRIBE MODEL eye"))["outputs"] == (4,)


def test_a_file_that_changed_is_loaded_again(pickled: Path) -> None:
    with krypton.connect() as con:
        con.sql(f"CREATE MODEL eye FROM '{pickled}' INPUT 3x20x24 TRUSTED")
        assert con.library.named("eye") is con.library.named("EYE")
        torch.save(SmallNet(outputs=2), pickled)
        assert con.library.named("eye").outputs == 2


def test_a_live_module_is_not_kept_and_says_so(file: Path) -> None:
    with krypton.connect(file) as con:
        con.register_model("net", SmallNet(), input_shape=SHAPE)
        assert "session only" in str(con.sql("DESCRIBE MODEL net"))
    with krypton.connect(file) as con:
        assert "earlier session" in str(con.sql("SHOW MODELS"))
        assert "register it again" in str(con.sql("DESCRIBE MODEL net"))
        with pytest.raises(CatalogError, match="register it again"):
            con.sql("EXPLAIN OCCLUSION OF 'a.png' USING MODEL net")
        con.sql("CREATE MODEL net FROM $m INPUT 3x20x24", {"m": SmallNet()})
        assert con.library.named("net").outputs == 4
        con.sql("DROP MODEL net")
        assert con.models() == []


def test_registering_a_name_again_replaces_the_model() -> None:
    with krypton.connect() as con:
        con.register_model("net", SmallNet(), input_shape=SHAPE)
        con.register_model("NET", SmallNet(outputs=2), input_shape=SHAPE)
        assert con.library.named("net").outputs == 2
        assert con.models() == ["NET"]


def test_create_does_not_replace_unless_told(pickled: Path) -> None:
    with krypton.connect() as con:
        con.sql(f"CREATE MODEL eye FROM '{pickled}' INPUT 3x20x24 TRUSTED")
        with pytest.raises(CatalogError, match="OR REPLACE"):
            con.sql(f"CREATE MODEL EYE FROM '{pickled}' INPUT 3x20x30 TRUSTED")
        con.sql(f"CREATE OR REPLACE MODEL EYE FROM '{pickled}' INPUT 3x20x30 TRUSTED")
        assert con.library.named("eye").preprocessing.width == 30
        con.sql("CREATE OR REPLACE MODEL eye FROM $m INPUT 3x20x40", {"m": SmallNet()})
        assert con.library.named("eye").preprocessing.width == 40


def test_dropping_models(con: krypton.Connection) -> None:
    con.register_model("gone", SmallNet(), input_shape=SHAPE)
    assert str(con.sql("DROP MODEL Gone")) == "model Gone is dropped"
    assert str(con.sql("DROP MODEL IF EXISTS gone")) == "there is no model gone"
    with pytest.raises(BindError, match='unknown model "gone"'):
        con.sql("DROP MODEL gone")


def test_a_pickled_module_is_read_only_with_trust(con: krypton.Connection, pickled: Path) -> None:
    for text in (f"CREATE MODEL eye FROM '{pickled}'", f"EXPLAIN OCCLUSION OF 'a.png' USING MODEL '{pickled}'"):
        with pytest.raises(CaptureError, match="TRUSTED"):
            con.sql(text)
    assert "eye" not in con.models()


def test_describe_says_everything(con: krypton.Connection) -> None:
    said = table(con.sql("DESCRIBE MODEL NET"))
    assert said["input"] == ("3x20x24",)
    assert said["mean"] == ("0.5, 0.5, 0.5",)
    assert said["labels"] == ("4: normal, drusen, fluid …",)
    assert said["activation"] == ("softmax",)


def test_describe_says_when_weights_are_random(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with krypton.connect() as con:
        made = con.sql("CREATE MODEL small FROM 'torchvision:shufflenet_v2_x0_5' INPUT 3x64x64")
        assert "weights are random" in str(made)
        assert "random" in str(table(con.sql("DESCRIBE MODEL small"))["weights"])
        text = "EXPLAIN OCCLUSION OF $img USING MODEL small PATCH 32 STRIDE 32 MODE NAIVE"
        query = con.sql(text, {"img": torch.zeros(3, 64, 64)})
        assert "weights are random" in query.explain()
        assert "weights are random" in query.run().info["notes"][0]


def test_names_for_completion(con: krypton.Connection) -> None:
    assert "net" in con.models()
    assert con.labels("net") == LABELS
    with pytest.raises(BindError):
        con.labels("nett")


# ---------------------------------------------------------------------------------------------------- settings, listings


def test_settings_are_set_shown_and_reset(con: krypton.Connection) -> None:
    assert str(con.sql("SET krypton.Batch = 7")) == "krypton.batch = 7"
    con.sql("SET krypton.disabled_rules = 'Incremental, share_views'")
    shown = table(con.sql("SHOW SETTINGS"))
    assert list(shown) == list(SETTINGS)
    assert shown["batch"][0] == 7
    assert shown["disabled_rules"][0] == "incremental, share_views"
    rules = table(con.sql("SHOW RULES"))
    assert not rules["incremental"][0]
    assert rules["fold_batch_norm"][0]
    con.sql("RESET krypton.batch")
    assert con.settings["batch"] is None


def test_connect_takes_settings() -> None:
    with krypton.connect(config={"batch": 4, "krypton.debug": "on"}) as con:
        assert (con.settings["batch"], con.settings["debug"]) == (4, True)
    with pytest.raises(BindError, match='Did you mean "batch"'):
        krypton.connect(config={"btach": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SET krypton.btach = 3", 'unknown setting "btach". Did you mean "batch"'),
        ("RESET krypton.btach", 'unknown setting "btach"'),
        ("SET krypton.batch = 'many'", "krypton.batch takes"),
        ("SET krypton.disabled_rules = 'fold_batchnorm'", 'unknown rule "fold_batchnorm". Did you mean "fold_batch_norm"'),
        ("SET krypton.device = 'gpu'", 'unknown device "gpu"'),
    ],
)
def test_settings_that_make_no_sense(text: str, message: str, con: krypton.Connection) -> None:
    before = con.settings.items()
    with pytest.raises(BindError, match=message):
        con.sql(text)
    assert con.settings.items() == before


@pytest.mark.parametrize("what", ["MODELS", "RULES", "OPERATORS", "KERNELS", "SETTINGS", "TUNINGS", "DEVICES"])
def test_listings_are_tables(what: str, con: krypton.Connection) -> None:
    result = con.sql(f"SHOW {what}")
    assert isinstance(result, Table)
    assert all(len(row) == len(result.columns) for row in result)
    assert (len(result) == 0) == (what == "TUNINGS")
    lines = str(result).splitlines()
    assert len(lines) == len(result) + 1
    assert lines[0].split()[0] == result.columns[0]


# ---------------------------------------------------------------------------------------------------- DuckDB


def test_everything_else_is_duckdbs(con: krypton.Connection) -> None:
    con.sql("CREATE TABLE t (a INTEGER, b VARCHAR); INSERT INTO t VALUES (1, 'x;y'), (2, $$z$$)")
    assert con.sql("SELECT b FROM t WHERE a = $a", {"a": 1}).fetchall() == [("x;y",)]
    assert con.sql("SHOW TABLES").fetchall() == [("t",)]
    assert con.sql("EXPLAIN SELECT 1").columns == ["explain_key", "explain_value"]
    con.sql("SET threads = 1")
    with pytest.raises(CatalogError, match="syntax error"):
        con.sql("SELEC 1")


def test_data_frames_are_registered_never_guessed(con: krypton.Connection) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": ["nowhere.png"]})
    with pytest.raises(CatalogError, match="frame does not exist"):
        con.sql("SELECT path FROM frame")
    con.register("scans", frame)
    assert con.sql("SELECT path FROM scans").fetchall() == [("nowhere.png",)]
    con.sql("DROP VIEW scans")
    with pytest.raises(CatalogError):
        con.register("scans", object())


# ---------------------------------------------------------------------------------------------------- scripts


def test_scripts_run_in_order_and_give_the_last_result(con: krypton.Connection, scan: Path, tmp_path: Path) -> None:
    result = con.sql(
        f"""SET krypton.batch = 9; -- a comment
        EXPLAIN OCCLUSION OF '{scan}' USING MODEL net PATCH 8 STRIDE 8 MODE NAIVE INTO '{tmp_path}/heat.npz';
        SELECT 42 AS answer;"""
    )
    assert result.fetchall() == [(42,)]
    assert con.settings["batch"] == 9
    assert (tmp_path / "heat.npz").exists()


def test_nothing_runs_when_a_statement_cannot_be_parsed(con: krypton.Connection) -> None:
    with pytest.raises(ParserError, match="LINE 2"):
        con.sql("CREATE TABLE t (a INTEGER);\nEXPLAIN OCCLUSION OF 'a.png' USING MODEL net PTACH 3")
    assert con.sql("SHOW TABLES").fetchall() == []


def test_script_gives_each_result_when_asked(con: krypton.Connection) -> None:
    results = con.script("CREATE TABLE t AS SELECT 1 AS a; SELECT * FROM t; SHOW RULES")
    next(results)
    assert con.sql("SHOW TABLES").fetchall() == [("t",)]
    assert next(results).fetchall() == [(1,)]
    assert isinstance(next(results), Table)
    assert list(results) == []


@pytest.mark.parametrize("text", ["", "  ;; -- nothing"])
def test_a_text_without_statements(text: str, con: krypton.Connection) -> None:
    with pytest.raises(ParserError, match="expected a statement"):
        con.sql(text)


def test_parameters_must_be_given_and_used(con: krypton.Connection) -> None:
    with pytest.raises(BindError, match=r"\$img has no value"):
        con.sql("EXPLAIN OCCLUSION OF $img USING MODEL net")
    with pytest.raises(BindError, match="no statement uses these parameters: image"):
        con.sql("SELECT $img", {"img": 1, "image": 2})
    with pytest.raises(BindError, match="params is a dictionary"):
        con.sql("SELECT 1", params=[1])  # type: ignore[arg-type]
    assert con.sql("SELECT $a; SELECT $b", {"a": 1, "b": 2}).fetchall() == [(2,)]


def test_a_closed_session_says_so() -> None:
    con = krypton.connect()
    con.close()
    for act in (lambda: con.sql("SHOW RULES"), lambda: con.register_model("net", SmallNet())):
        with pytest.raises(CatalogError, match="closed"):
            act()


def test_messages_print_as_their_text() -> None:
    assert str(Message("done")) == repr(Message("done")) == "done"


@pytest.mark.parametrize("module", ["resnet18", None, SmallNet])
def test_only_modules_are_registered(module: object, con: krypton.Connection) -> None:
    with pytest.raises(BindError, match=r"takes a torch\.nn\.Module"):
        con.register_model("net2", module)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("clauses", "marked", "message"),
    [
        ("OF 'none.png' USING MODEL net", "OF 'none.png'", "does not exist"),
        ("OF 'broken.png' USING MODEL net", "OF 'broken.png'", "truncated or damaged"),
        ("OF 'text.png' USING MODEL net", "OF 'text.png'", "not an image"),
        ("OF '.' USING MODEL net", "OF '.'", "is a folder"),
        ("OF (SELECT path FROM nowhere) USING MODEL net", "OF (SELECT path FROM nowhere)", "nowhere does not exist"),
        ("OF 'scan.png' USING MODEL nett", "USING MODEL nett", 'Did you mean "net"'),
        ("OF 'scan.png' USING MODEL 'net'", "USING MODEL 'net'", "without single quotes"),
        ("OF 'scan.png' USING MODEL net PATCH 21", "PATCH 21", "choose a smaller PATCH"),
        ("OF 'scan.png' USING MODEL net INTO 'none/heat.png'", "INTO 'none/heat.png'", "no folder"),
        ("OF 'scan.png' USING MODEL net INTO TABLE there", "INTO TABLE there", "DROP TABLE there"),
    ],
)
def test_mistakes_are_marked_in_the_script(
    clauses: str,
    marked: str,
    message: str,
    con: krypton.Connection,
    scan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(scan.read_bytes()[:400])
    (tmp_path / "text.png").write_text("hello")
    con.sql("CREATE TABLE there (a INTEGER)")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(krypton.KryptonError, match=message) as caught:
        con.sql(f"SHOW RULES;\nEXPLAIN OCCLUSION\n  {clauses};\nSHOW RULES")
    *_, line, carets = str(caught.value).splitlines()
    assert line.startswith("LINE 3: ")
    start, width = carets.index("^"), carets.count("^")
    assert line[start : start + width] == marked
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("clauses", "marked", "message"),
    [
        ("FROM 'torchvision:resnet81'", "FROM 'torchvision:resnet81'", 'Did you mean "resnet18"'),
        ("FROM $m INPUT 1x20x24", "INPUT 1x20x24", "does not take images of 1x20x24"),
        ("FROM $m INPUT 3x20x24 LABELS 'none.txt'", "LABELS 'none.txt'", "does not exist"),
        ("FROM $m INPUT 3x20x24 MEAN (0.5, 0.5)", "MEAN (0.5, 0.5)", "MEAN has 2 values"),
        ("FROM $m STD (0) INPUT 3x20x24", "STD (0)", "must be positive"),
    ],
)
def test_mistakes_in_models_are_marked_and_nothing_is_kept(
    clauses: str, marked: str, message: str, con: krypton.Connection
) -> None:
    text = f"CREATE MODEL fill {clauses}"
    with pytest.raises(krypton.KryptonError, match=message) as caught:
        con.sql(text, {"m": SmallNet()} if "$m" in text else None)
    carets = str(caught.value).splitlines()[-1]
    assert text[carets.index("^") - len("LINE 1: ") :][: carets.count("^")] == marked
    assert con.models() == ["net"]


def test_calibrate_measures_a_device_once_for_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krypton.planner.calibration._CHANNELS", (16,))
    monkeypatch.setattr("krypton.planner.calibration._OUTPUTS", (16,))
    monkeypatch.setattr("krypton.planner.calibration._SIDES", (7,))
    seen: list[tuple[int, int]] = []
    with krypton.connect(tmp_path / "krypton.db") as con:
        con.register_model(
            "net",
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18 * 18, 3)),
            input_shape=(3, 20, 20),
        )
        table = con.sql("CALIBRATE MODEL net DEVICE CPU", progress=lambda done, total: seen.append((done, total)))
        assert {row[0] for row in table} == {"cpu"}
        assert all(row[2] > 0 and row[3] > 0 for row in table)
        assert seen[-1][0] == seen[-1][1]
        measured = con.profiles.of("cpu")
    with krypton.connect(tmp_path / "krypton.db") as con:
        assert con.profiles.of("cpu") == measured
        with pytest.raises(BindError, match="unknown model"):
            con.sql("CALIBRATE MODEL nothing")
        with pytest.raises(BindError, match="unknown device"):
            con.sql("CALIBRATE DEVICE 'abacus'")
