"""A bar for one query: positions done, rate and time left, on standard error and only when that is a terminal."""

from __future__ import annotations

import datetime
from types import TracebackType

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from krypton.cli.screen import Screen


class ProgressBar:
    """A context manager that shows how far a query is; call it with (positions done, positions in all).

    Until the first call it says that the query is being planned. It vanishes when the query ends.
    """

    def __init__(self, screen: Screen) -> None:
        self.enabled = screen.err.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _Positions(),
            console=screen.err,
            transient=True,
            disable=not self.enabled,
            redirect_stdout=False,  # results belong to standard output, whatever is drawn on standard error
            redirect_stderr=False,
        )
        self._task = self._progress.add_task("planning", total=None)

    def __call__(self, done: int, total: int) -> None:
        task = self._progress.tasks[0]
        if task.total != total or done < task.completed:
            # A query over several images starts anew with each.
            self._progress.reset(self._task, total=total, description="occluding")
        self._progress.update(self._task, completed=done)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()


class _Positions(ProgressColumn):
    """`1,234 of 2,809 positions, 345 per second, 0:00:04 left`."""

    def render(self, task: Task) -> Text:
        return Text(describe(int(task.completed), task.total, task.speed))


def describe(done: int, total: float | None, speed: float | None) -> str:
    """How far a query is, in words; `speed` is in positions per second, None while it is not known."""
    if total is None:
        return ""
    text = f"{done:,} of {int(total):,} positions"
    if speed:
        left = datetime.timedelta(seconds=round((total - done) / speed))
        text += f", {rate(speed)}, {left} left"
    return text


def rate(speed: float) -> str:
    """`345 per second`, with a decimal where the number is small."""
    return f"{speed:,.0f} per second" if speed >= 10 else f"{speed:.1f} per second"
