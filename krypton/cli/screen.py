"""Screen: where the command line writes. Results go to standard output, errors and progress to standard error."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text


@dataclass(frozen=True)
class Screen:
    """The two streams of a process. Colours, tables and bars are for terminals; a pipe or file gets plain text."""

    out: Console
    err: Console

    @classmethod
    def of_process(cls) -> Screen:
        """The process's own standard output and error."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal that cannot show `×` is no reason to fail.
                stream.reconfigure(errors="replace")
        return cls(*(_Quiet(file=stream, highlight=False, markup=False, emoji=False) for stream in (sys.stdout, sys.stderr)))

    @property
    def interactive(self) -> bool:
        """Whether somebody looks at the results, rather than a program or file taking them."""
        return self.out.is_terminal

    def write(self, text: str) -> None:
        """A line or more of results exactly as it is: nothing wrapped, nothing coloured."""
        self.out.file.write(text if text.endswith("\n") else text + "\n")

    def say(self, text: str, style: str = "") -> None:
        """A line or more for the user, not part of any result."""
        self.err.print(Text(text, style=style), soft_wrap=True)

    def flush(self) -> None:
        """Write out what is buffered; raises BrokenPipeError when nobody reads any more."""
        self.out.file.flush()


class _Quiet(Console):
    """A console that leaves a closed pipe to the caller, who knows the exit status."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def abandon_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not meet the closed pipe again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
