"""The command `krypton`: where statements come from, what it says, and its exit status."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_net import QUERY, Net

import krypton
from krypton.cli.main import main

MISSPELT = "EXPLAIN OCCLUSION OF 'cat.jpg' USING MODEL resnet50 PATCH 16 STRDE 4"


@pytest.fixture
def with_net(connection: krypton.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command's session knows the model `net`."""
    monkeypatch.setattr(krypton, "connect", lambda *_: connection)
    return


def test_statement_is_run_and_its_result_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "SELECT 40 + 2 AS answer"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("answer\n    42\n", "")


def test_several_statements_in_one_text_and_in_several_options_share_a_session(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", "CREATE TABLE t AS SELECT 7 AS x; SELECT x FROM t", "-c", "SELECT x + 1 AS y FROM t;"]) == 0
    assert capsys.readouterr().out == "x\n7\ny\n8\n"


def test_mistake_is_shown_with_place_and_remedy_and_without_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", MISSPELT]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0] == 'ParserError: unknown clause "STRDE" in EXPLAIN OCCLUSION'
    assert lines[2] == f"LINE 1: {MISSPELT}"
    assert lines[3].index("^^^^^") == lines[2].index("STRDE")
    assert lines[4].startswith('Did you mean "STRIDE"? Expected one of: DEVICE, FILL,')
    assert "Traceback" not in err


def test_misspelt_statement_anywhere_keeps_all_others_from_running(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", f"COPY (SELECT 1) TO 'one.csv'; {MISSPELT}"]) == 1
    assert not Path("one.csv").exists()
    assert capsys.readouterr().out == ""


def test_statements_after_one_that_fails_are_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "SELECT 1 AS x; SELECT * FROM nowhere; SELECT 2 AS x"]) == 1
    out, err = capsys.readouterr()
    assert out == "x\n1\n"
    assert "nowhere" in err
    assert "Traceback" not in err


def test_error_that_shows_when_rows_are_asked_for_is_the_users(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", "SELECT CAST(x AS INTEGER) FROM (VALUES ('seven')) t(x)"]) == 1
    err = capsys.readouterr().err
    assert "seven" in err
    assert "Traceback" not in err


def test_script_file_runs_and_errors_name_the_line_in_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.sql").write_text("-- a comment; with a semicolon\nSELECT 1 AS x;\n\nSELECT 2 AS x\n")
    Path("bad.sql").write_text("SELECT 1 AS x;\nSELECT 2 AS x; EXPLAIN OCCLUSION OF 'no.png' USING MODEL nix\n")
    assert main(["good.sql"]) == 0
    assert capsys.readouterr().out == "x\n1\nx\n2\n"
    assert main(["bad.sql"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith('BindError: unknown model "nix"')
    assert err[2].startswith("LINE 2: ")
    assert err[3].rindex("^") == len("LINE 2: SELECT 2 AS x; EXPLAIN OCCLUSION OF 'no.png' USING MODEL nix") - 1


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_script_comes_from_standard_input(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS x; SELECT 2 AS x"))
    assert main(arguments) == 0
    assert capsys.readouterr().out == "x\n1\nx\n2\n"


def test_database_file_keeps_tables_whichever_side_of_the_script_it_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("read.sql").write_text("SELECT x FROM t")
    assert main(["-d", "work.krypton", "-c", "CREATE TABLE t AS SELECT 7 AS x"]) == 0
    assert main(["read.sql", "-d", "work.krypton"]) == 0
    assert main(["-d", "work.krypton", "read.sql"]) == 0
    assert capsys.readouterr().out == "x\n7\nx\n7\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.sql"], "script 'nowhere.sql' cannot be read: No such file or directory"),
        (["dmo"], 'there is no file "dmo" and no command of that name. Did you mean "demo"?'),
        (["latin.sql"], "script 'latin.sql' is not text in UTF-8"),
        (["-d", "nowhere/work.krypton", "-c", "SELECT 1"], "CatalogError: "),
        (["-c", "SELECT * FROM nowhere"], "CatalogError: Table with name nowhere does not exist"),
        (["-c", "SELECT i::DATE FROM range(3) t(i)"], "CatalogError: "),
        (["-c", "SELECT 'x'::INTEGER AS x"], "CatalogError: Could not convert string 'x'"),
        (["--nonsense"], "No such option"),
        (["latin.sql", "-c", "SELECT 1"], "not both"),
    ],
)
def test_wrong_arguments_are_the_users(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("latin.sql").write_bytes("SELECT 'é'".encode("latin-1"))
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err


def test_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"krypton {krypton.__version__}\n"


def test_terminal_without_arguments_gets_a_shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr("krypton.cli.shell.run_shell", opened.append)
    assert main([]) == 0
    assert len(opened) == 1


def test_query_says_what_it_found_and_where_it_wrote(with_net: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", f"{QUERY} INTO 'heat.npz'"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("scan.png: '")
    assert "25 positions in" in out
    assert out.endswith("; written to heat.npz\n")
    assert out.count("\n") == 1
    assert Path("heat.npz").exists()
    assert "\x1b" not in out + err


def test_plan_is_printed_as_it_is(with_net: None, connection: krypton.Connection, capsys: pytest.CaptureFixture[str]) -> None:
    plan = connection.sql(QUERY).explain(costs=False)
    assert main(["-c", f"EXPLAIN (COSTS OFF) PLAN FOR {QUERY}"]) == 0
    assert capsys.readouterr().out == f"{plan}\n"


def test_estimate_is_printed(with_net: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", f"ESTIMATE {QUERY}"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "positions, about" in first
    assert second.endswith("founded on: default profile, no finished queries yet")


def test_interrupt_says_what_was_done_and_leaves_the_target_alone(
    with_net: None, connection: krypton.Connection, net: Net, capsys: pytest.CaptureFixture[str]
) -> None:
    before = net.calls
    connection.sql(QUERY).run()
    # The last calls are seven batches of up to four positions; the third is not finished.
    net.interrupt_at = net.calls + (net.calls - before) - 4
    assert main(["-c", f"SELECT 1 AS x; {QUERY} INTO 'heat.npz'; SELECT 2 AS x"]) == 130
    out, err = capsys.readouterr()
    assert out == "x\n1\n"
    assert "interrupted: 8 of 25 positions were done" in err
    assert "Traceback" not in err
    assert not Path("heat.npz").exists()
    if "heat.partial.npz" in err:
        saved = np.load("heat.partial.npz")
        assert saved["known"].sum() == 8
        assert np.isfinite(saved["heatmap"]).all()


def test_failing_query_leaves_no_file(with_net: None, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    for mistake in (
        "PATCH 99 INTO 'heat.png'",
        "INTO 'nowhere/heat.png'",
        "INTO 'heat.gif'",
        "FILL 'none.png' INTO 'heat.png'",
    ):
        text = f"EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net MODE NAIVE {mistake}"
        assert main(["-c", text]) == 1, mistake
        assert "Traceback" not in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_bug_shows_its_traceback_and_has_a_status_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("krypton.cli.runner.Runner.run_script", fail)
    assert main(["-c", "SELECT 1"]) == 2
    err = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in err
    assert "bug of Krypton" in err


def test_reader_that_goes_away_ends_the_command_quietly(folder: Path) -> None:
    command = [sys.executable, "-m", "krypton", "-c", "SELECT * FROM range(200_000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_full_disk_is_no_bug_of_ours(folder: Path) -> None:
    command = [sys.executable, "-m", "krypton", "-c", "SELECT 1"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == "ExecutionError: the output cannot be written: No space left on device\n"


def test_interrupt_before_any_statement_is_said_too(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(krypton, "connect", interrupt)
    assert main(["-c", "SELECT 1"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
