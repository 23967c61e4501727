"""Running scripts: every statement in order, its result shown, until one fails or somebody interrupts.

Between the language and the screen; main.py and shell.py use it alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from krypton.cli.progress import ProgressBar
from krypton.cli.render import show
from krypton.cli.screen import Screen
from krypton.errors import ExecutionError
from krypton.results import Heatmap
from krypton.sql import parse_script, to_sql
from krypton.sql.ast import ExplainOcclusion, IntoFile, Statement

if TYPE_CHECKING:
    from krypton.session import Connection, Query


@dataclass
class Runner:
    """Runs statements over one connection; `timer` says after each how long it took."""

    connection: Connection
    screen: Screen
    timer: bool = False

    def run_script(self, text: str) -> None:
        """Run all statements of a text. A mistake in the writing of any is found before the first is run.

        Raises KryptonError at the first statement that fails, KeyboardInterrupt after saying what was done.
        """
        for statement in parse_script(text):
            start = time.perf_counter()
            with _duckdb_errors():
                self._run(statement)
            if self.timer:
                self.screen.say(f"{time.perf_counter() - start:.3f} s", style="dim")

    def run_file(self, path: Path) -> None:
        """Run the statements of a file; raises ExecutionError when it cannot be read."""
        self.run_script(read_script(path))

    def _run(self, statement: Statement) -> None:
        result = self.connection.sql(to_sql(statement))
        if isinstance(statement, ExplainOcclusion):
            result = self._run_query(result, statement)
        show(self.screen, result)

    def _run_query(self, query: Query, statement: ExplainOcclusion) -> Any:
        try:
            with ProgressBar(self.screen) as bar:
                return query.run(progress=bar if bar.enabled else False)
        except KeyboardInterrupt:
            self.screen.say(what_was_done(getattr(query, "partial", None), statement), style="yellow")
            raise


def read_script(path: Path) -> str:
    """The text of a script; raises ExecutionError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ExecutionError(f"script '{path}' is not text in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ExecutionError(f"script '{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from None


def what_was_done(partial: Heatmap | None, statement: ExplainOcclusion) -> str:
    """What an interrupted query leaves, in one line."""
    done = "before any position was done"
    if partial is not None:
        what = "masks" if partial.masks is not None else "positions"
        done = f"{int(partial.known.sum()):,} of {partial.known.numel():,} {what} were done"
    text = f"Interrupted: {done}"
    return f"{text}; '{statement.into.path}' was not written." if isinstance(statement.into, IntoFile) else f"{text}."


@contextmanager
def _duckdb_errors() -> Iterator[None]:
    """DuckDB's relations are lazy: what is wrong with a SELECT may show only when its rows are asked for."""
    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        raise ExecutionError(str(error)) from error
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # DuckDB's word for Ctrl-C in the Python client
            raise KeyboardInterrupt from None
        raise
