"""What statements give, on a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from rich.console import Console
from small_net import QUERY, written

import krypton
from krypton.cli.blocks import half_blocks
from krypton.cli.progress import ProgressBar, describe
from krypton.cli.render import show, show_error, show_table, summary
from krypton.cli.screen import Screen

MakeScreen = Callable[..., Screen]


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        yield connection


@pytest.fixture
def heatmap(connection: krypton.Connection) -> krypton.Heatmap:
    result = connection.sql(QUERY).run()
    assert isinstance(result, krypton.Heatmap)
    return result


def test_summary_is_one_line_with_all_that_matters(heatmap: krypton.Heatmap) -> None:
    top, left, height, width = heatmap.most_sensitive
    text = summary(heatmap)
    assert text.startswith(f"scan.png: '{heatmap.label}' probability {heatmap.base_score:.4g}; ")
    assert f"most sensitive at ({top}, {left}, {height}, {width}): {heatmap.heatmap.min():.4g}; 25 positions in " in text
    assert text.endswith(" per second")


def test_summary_of_a_part_says_so(heatmap: krypton.Heatmap) -> None:
    from dataclasses import replace

    logits, known = heatmap.logits.clone(), heatmap.known.clone()
    logits[2:], known[2:] = torch.nan, False
    assert "; 10 of 25 positions in " in summary(replace(heatmap, logits=logits, known=known))
    logits[:], known[:] = torch.nan, False
    assert "; 0 of 25 positions in " in summary(replace(heatmap, logits=logits, known=known))


def test_terminal_gets_the_map_and_a_pipe_does_not(heatmap: krypton.Heatmap, make_screen: MakeScreen) -> None:
    terminal, pipe = make_screen(tty=True), make_screen()
    show(terminal, heatmap)
    show(pipe, heatmap)
    assert "▀" in written(terminal.out)
    assert written(pipe.out) == summary(heatmap) + "\n"


def test_many_maps_have_a_line_each_and_few_pictures(heatmap: krypton.Heatmap, make_screen: MakeScreen) -> None:
    terminal, pipe = make_screen(tty=True), make_screen()
    show(terminal, [heatmap] * 60)
    show(pipe, [heatmap] * 60)
    lines = written(terminal.out).splitlines()
    assert sum(line.startswith("scan.png") for line in lines) == 50
    assert sum("▀" in line for line in lines) <= 4 * 30
    assert "The first 50 of 60 heat maps are shown." in written(terminal.err)
    assert written(pipe.out) == (summary(heatmap) + "\n") * 60


def test_notes_are_said_once_on_standard_error(heatmap: krypton.Heatmap, make_screen: MakeScreen) -> None:
    heatmap.info["notes"].append("weights are random")  # type: ignore[index]
    screen = make_screen()
    show(screen, [heatmap, heatmap])
    assert written(screen.err).count("weights are random") == 1
    assert "random" not in written(screen.out)


@pytest.mark.parametrize("shape", [(53, 53), (1, 1), (3, 200), (200, 3), (7, 4), (1000, 1000)])
def test_half_blocks_fit_and_are_not_tiny(shape: tuple[int, int]) -> None:
    screen = Console(width=200, force_terminal=True, color_system=None, file=None, record=True, quiet=True)
    lines = screen.render_lines(half_blocks(np.zeros((*shape, 3), np.uint8), 60), pad=False)
    lines = [line for line in lines if line]
    widths = {sum(segment.cell_length for segment in line) for line in lines}
    assert len(widths) == 1
    assert 1 <= max(widths) <= 60
    assert 1 <= len(lines) <= 30
    if shape == (53, 53):
        assert (widths, len(lines)) == ({53}, 27)
    if shape == (7, 4):
        assert (widths, len(lines)) == ({24}, 21)


def test_pipe_gets_all_rows_aligned_and_numbers_whole(database: duckdb.DuckDBPyConnection, make_screen: MakeScreen) -> None:
    screen = make_screen()
    show(screen, database.sql("SELECT i AS n, i / 3 AS third, 'x' || i AS name, NULL AS none FROM range(120) t(i)"))
    lines = written(screen.out).splitlines()
    assert lines[0].split() == ["n", "third", "name", "none"]
    assert len(lines) == 121
    assert lines[2] == "  1  0.3333333333333333  x1"


def test_terminal_gets_the_first_rows_and_is_told(database: duckdb.DuckDBPyConnection, make_screen: MakeScreen) -> None:
    screen = make_screen(tty=True)
    show(screen, database.sql("SELECT * FROM range(51)"))
    assert "49" in written(screen.out)
    assert "50" not in written(screen.out)
    assert "The first 50 rows are shown; there are more." in written(screen.err)


def test_statement_without_result_shows_nothing(database: duckdb.DuckDBPyConnection, make_screen: MakeScreen) -> None:
    screen = make_screen()
    for text in ("CREATE TABLE t AS SELECT 1 AS Count", "INSERT INTO t VALUES (2)", "SET threads = 1", "DROP TABLE t"):
        show(screen, database.sql(text))
    show(screen, None)
    assert written(screen.out) == ""
    show(screen, database.sql('SELECT 3 AS "Count"'))
    assert written(screen.out) == "Count\n    3\n"


def test_plan_of_duckdb_is_printed_as_drawn(database: duckdb.DuckDBPyConnection, make_screen: MakeScreen) -> None:
    screen = make_screen(tty=True)
    show(screen, database.sql("EXPLAIN SELECT 1"))
    assert written(screen.out) == database.sql("EXPLAIN SELECT 1").fetchall()[0][1]


def test_tables_of_the_session_show_booleans_and_names(connection: krypton.Connection, make_screen: MakeScreen) -> None:
    screen = make_screen()
    show(screen, connection.sql("SHOW MODELS"))
    assert [line.split()[0] for line in written(screen.out).splitlines()] == ["name", "net"]


@pytest.mark.parametrize("tty", [True, False])
def test_nothing_in_the_data_is_interpreted(tty: bool, make_screen: MakeScreen) -> None:
    screen = make_screen(tty=tty, width=200)
    nasty = "[red]x[/red] :smile: \x1b]0;title\x07 a\nb"
    show_table(screen, ["[bold]c"], [(nasty,)])
    show_error(screen, krypton.BindError(nasty))
    for text in (written(screen.out), written(screen.err)):
        assert "[red]x[/red] :smile:" in text
        assert "\x1b]" not in text
        assert "\x07" not in text


@pytest.mark.parametrize("tty", [True, False])
def test_long_text_is_not_wrapped(tty: bool, make_screen: MakeScreen) -> None:
    screen = make_screen(tty=tty, width=20)
    line = " ".join(["word"] * 50)
    show(screen, line)
    show_error(screen, krypton.BindError(line))
    assert line in written(screen.out)
    assert line in written(screen.err)


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    assert describe(1234, 2809, 345.0) == "1,234 of 2,809, 345 per second, 0:00:05 left"
    assert describe(0, 10, None) == "0 of 10"
    assert describe(0, None, None) == ""
    assert describe(1, 10, 0.25) == "1 of 10, 0.2 per second, 0:00:36 left"


def test_progress_is_drawn_on_a_terminal_only(make_screen: MakeScreen) -> None:
    for tty in (True, False):
        screen: Any = make_screen(tty=tty)
        with ProgressBar(screen) as bar:
            bar(1, 10)
            bar(10, 10)
        assert written(screen.out) == ""
        assert ("10 of 10" in written(screen.err)) is tty
