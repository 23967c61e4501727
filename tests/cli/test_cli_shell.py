"""The shell, driven by keys as somebody would press them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from small_net import QUERY, Net, written

import krypton
from krypton.cli import shell as module
from krypton.cli.complete import StatementLexer
from krypton.cli.runner import Runner
from krypton.cli.screen import Screen
from krypton.cli.shell import history_file, is_complete, make_completer, run_shell

CTRL_C, CTRL_D = "\x03", "\x04"
Press = Callable[[str], tuple[str, str]]


@pytest.fixture
def screen(make_screen: Callable[..., Screen]) -> Screen:
    return make_screen()


@pytest.fixture
def runner(connection: krypton.Connection, screen: Screen) -> Runner:
    return Runner(connection, screen)


@pytest.fixture
def press(runner: Runner) -> Press:
    """Opens a shell, presses keys, and returns what was written to standard output and error."""

    def keys(text: str) -> tuple[str, str]:
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(text + CTRL_C + CTRL_D)  # whatever was pressed, the shell ends
            run_shell(runner)
        return written(runner.screen.out), written(runner.screen.err)

    return keys


def test_statement_runs_at_its_semicolon_over_several_lines(press: Press) -> None:
    out, _ = press("SELECT\r40 + 2\rAS answer;\r.quit\r")
    assert out == "answer\n    42\n"


def test_semicolon_in_a_string_or_comment_ends_nothing() -> None:
    assert is_complete("SELECT 1;")
    assert is_complete("SELECT 1; -- done")
    assert is_complete(".help")
    assert is_complete("  ")
    assert not is_complete("SELECT ';")
    assert not is_complete("SELECT 1 -- ;")
    assert not is_complete("SELECT 1; SELECT")


def test_mistakes_do_not_end_the_shell(press: Press) -> None:
    out, err = press("SELEC 1;\rEXPLAIN OCLUSION;\r.nonsense\rSELECT 1 AS x;\r.exit\r")
    assert out == "x\n1\n"
    assert "SELEC" in err
    assert "ParserError: " in err
    assert 'BindError: unknown command ".nonsense".' in err
    assert "Traceback" not in err


def test_control_c_drops_the_line_and_control_d_leaves(press: Press) -> None:
    out, _ = press(f"SELECT 1 AS y;{CTRL_C}SELECT 2 AS x;\r{CTRL_D}")
    assert out == "x\n2\n"


def test_control_c_ends_a_running_query_and_not_the_shell(press: Press, net: Net) -> None:
    net.interrupt_at = net.calls + 3
    out, err = press(f"{QUERY};\rSELECT 1 AS x;\r{CTRL_D}")
    assert out == "x\n1\n"
    assert "interrupted" in err


def test_control_c_ends_a_long_select_and_not_the_shell(press: Press, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = krypton.Connection.fetch

    def fetch_and_press(self: krypton.Connection, relation: Any, most: int | None = None) -> list[tuple[Any, ...]]:
        if "i" in relation.columns:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return fetch(self, relation, most)

    monkeypatch.setattr(krypton.Connection, "fetch", fetch_and_press)
    started = time.perf_counter()
    out, err = press(f"SELECT count(*) AS i FROM range(100000000000) t(i) WHERE i % 7 = 3;\rSELECT 1 AS x;\r{CTRL_D}")
    assert time.perf_counter() - started < 10
    assert out == "x\n1\n"
    assert err.count("interrupted") == 1


def test_query_is_answered(press: Press) -> None:
    out, _ = press(f"{QUERY};\r{CTRL_D}")
    assert out.startswith("scan.png: '")


def test_commands_list_read_and_time(press: Press) -> None:
    Path("two words.sql").write_text("CREATE TABLE seen AS SELECT 3 AS x; SELECT x FROM seen")
    out, err = press(".models\r.read two words.sql\r.tables\r.timer on\rSELECT 1 AS y;\r.timer maybe\r.read none.sql\r.quit\r")
    assert "net" in out
    assert "x\n3\n" in out
    assert "seen" in out
    assert " s\n" in err
    assert '.timer takes on or off, not "maybe"' in err
    assert "script 'none.sql' cannot be read" in err


def test_help_names_every_command(press: Press) -> None:
    out, _ = press(".help\r.quit\r")
    for command in (".help", ".models", ".quit", ".read", ".tables", ".timer", "EXPLAIN OCCLUSION"):
        assert command in out


def test_history_is_kept_for_the_next_shell(press: Press, folder: Path) -> None:
    press("SELECT 1;\r.quit\r")
    assert history_file() == folder / "state" / "krypton" / "history"
    assert "SELECT 1;" in history_file().read_text()
    up = "\x1b[A"
    out, _ = press(f"{up}{up}\r.quit\r")
    assert out.count("\n1\n") == 2


def test_history_that_cannot_be_kept_is_no_reason_to_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "file"))
    assert isinstance(module._history(), InMemoryHistory)
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_file() == Path.home() / ".local" / "state" / "krypton" / "history"


@pytest.mark.parametrize(
    ("text", "offered", "not_offered"),
    [
        ("", "EXPLAIN", "STRIDE"),
        ("exp", "EXPLAIN", "SHOW"),
        ("EXPLAIN ", "OCCLUSION OF", "SHOW"),
        ("EST", "ESTIMATE", "EXPLAIN"),
        ("ESTIMATE ", "EXPLAIN OCCLUSION OF", "SHOW"),
        ("ESTIMATE EXPLAIN OCCLUSION OF 'scan.png' USING MODEL ", "net", "STRIDE"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL ", "net", "STRIDE"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net ST", "STRIDE", "SCORE"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net STRIDE 4 ", "PATCH", "STRIDE"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net FOR CLASS ", "'dog'", "STRIDE"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net FOR CLASS ", "PREDICTED", "net"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net FOR CLASS 'd", "dog'", "cat'"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net FOR CLASS 'o''p", "o''possum'", "cat'"),
        ("EXPLAIN OCCLUSION OF 'scan.png' USING MODEL nix FOR CLASS ", "PREDICTED", "'dog'"),
        ("EXPLAIN OCCLUSION OF 'sc", "an.png", "state"),
        ("DROP MODEL ", "net", "EXPLAIN"),
        ("SET krypton.", "batch", "net"),
        ("SET krypton.de", "device", "batch"),
        ("SHOW ", "MODELS", "net"),
        ("SELECT 1; SHOW RU", "RULES", "MODELS"),
        (".", ".help", "EXPLAIN"),
        (".ti", ".timer", ".help"),
        (".read sc", "an.png", "EXPLAIN"),
    ],
)
def test_completion_offers_what_may_follow(text: str, offered: str, not_offered: str, runner: Runner) -> None:
    completer = make_completer(runner, [".help", ".timer", ".read"])
    found = [completion.text for completion in completer.get_completions(Document(text), CompleteEvent())]
    assert offered in found
    assert not_offered not in found


def test_completion_replaces_what_is_begun(runner: Runner) -> None:
    (completion,) = make_completer(runner, []).get_completions(Document("SHOW mod"), CompleteEvent())
    assert (completion.text, completion.start_position) == ("MODELS", -3)


def test_colours_leave_the_text_as_it_is() -> None:
    text = "EXPLAIN OCCLUSION OF 'a\nb' -- why\n  USING MODEL net PATCH 16x8 MASKS $m /* open\n"
    lines = StatementLexer().lex_document(Document(text))
    drawn = ["".join(fragment[1] for fragment in lines(number)) for number in range(text.count("\n") + 1)]
    assert drawn == text.split("\n")
    styles = {fragment[1]: fragment[0] for fragment in lines(0)}
    assert styles["EXPLAIN"] == "bold ansiblue"
    assert styles["'a"] == "ansigreen"
