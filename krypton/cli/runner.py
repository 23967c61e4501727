"""Running scripts: every statement in order, its result shown, until one fails or somebody interrupts.

Between the session and the screen; main.py and shell.py use it alike.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from krypton.cli.progress import ProgressBar
from krypton.cli.render import show
from krypton.cli.screen import Screen
from krypton.errors import ExecutionError
from krypton.query import Query
from krypton.session import Connection
from krypton.sql import parse_script
from krypton.sql.lexemes import split

_NOT_A_LINE_END = re.compile(r"[^\n]")


class Interrupted(KeyboardInterrupt):
    """Somebody pressed Ctrl-C, and has been told what was done."""


@dataclass
class Runner:
    """Runs statements over one connection; `timer` says after each how long it took."""

    connection: Connection
    screen: Screen
    timer: bool = False

    def run_script(self, text: str) -> None:
        """Run all statements of a text. A mistake in the writing of any is found before the first is run.

        Raises KryptonError at the first statement that fails, Interrupted after saying what was done.
        """
        try:
            for statement in statements(text):
                start = time.perf_counter()
                self._run(statement)
                if self.timer:
                    self.screen.say(f"{time.perf_counter() - start:.3f} s", style="dim")
        except KeyboardInterrupt as interrupt:
            self.screen.say(str(interrupt) or "interrupted", style="yellow")
            raise Interrupted from None

    def run_file(self, path: Path) -> None:
        """Run the statements of a file; raises ExecutionError when it cannot be read."""
        self.run_script(read_script(path))

    def _run(self, statement: str) -> None:
        with ProgressBar(self.screen) as bar:
            result = self.connection.sql(statement, progress=bar)
            if isinstance(result, Query):
                result = result.run(progress=bar)
        show(self.screen, result, self.connection.fetch)


def statements(text: str) -> list[str]:
    """The statements of a script, each with blanks before it, so that errors name its place in the script.

    Raises ParserError for the first mistake in any of them.
    """
    parse_script(text)
    written = [(lexemes[0].start, lexemes[-1].stop) for lexemes in split(text) if lexemes]
    return [_NOT_A_LINE_END.sub(" ", text[:start]) + text[start:stop] for start, stop in written]


def read_script(path: Path) -> str:
    """The text of a script; raises ExecutionError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ExecutionError(f"script '{path}' is not text in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ExecutionError(f"script '{path}' cannot be read: {getattr(error, 'strerror', None) or error}") from None
