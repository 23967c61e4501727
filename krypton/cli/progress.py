"""A bar for one query: positions done, rate and time left, on standard error and only when that is a terminal.

`Query.run(progress=True)` draws one too, for programs; this one shares the screen, and vanishes.
"""

from __future__ import annotations

import datetime
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from krypton.cli.screen import Screen


class ProgressBar:
    """A context manager that shows how far a query is; call it with (occlusions done, occlusions in all).

    Until the first call it says only that work is going on: loading, capturing, planning.
    """

    def __init__(self, screen: Screen, doing: str = "occluding") -> None:
        self._doing = doing
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _Positions(),
            console=screen.err,
            transient=True,
            disable=not screen.err.is_terminal,
            redirect_stdout=False,  # results belong to standard output, whatever is drawn on standard error
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("working", total=None)

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total, description=self._doing)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


class _Positions(ProgressColumn):
    """How far, how fast, how long yet."""

    def render(self, task: Task) -> Text:
        return Text(describe(int(task.completed), task.total, task.speed))


def describe(done: int, total: float | None, speed: float | None) -> str:
    """`1,234 of 2,809, 345 per second, 0:00:05 left`; `speed` is per second, None while it is not known."""
    if total is None:
        return ""
    text = f"{done:,} of {int(total):,}"
    if speed:
        text += f", {rate(speed)}, {datetime.timedelta(seconds=round((total - done) / speed))} left"
    return text


def rate(speed: float) -> str:
    """`345 per second`, with a decimal where the number is small."""
    return f"{speed:,.0f} per second" if speed >= 10 else f"{speed:.1f} per second"
