"""Progress of a running query: a bar on standard error, or whatever the caller wants to do with the numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Report = Callable[[int, int], object]
"""Called with the occlusions done, and how many there are in all."""


@contextlib.contextmanager
def reporting(progress: bool | Report, description: str) -> Iterator[Report]:
    """The function to call as work is done: the caller's own, one that draws a bar, or one that does nothing."""
    if callable(progress):
        yield progress
        return
    if not progress:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=None, rate="")

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:,.0f} per s" if speed else "")

        yield report
