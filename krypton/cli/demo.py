"""`krypton demo`: the shipped model explained on the shipped image, with the plan, the picture and a fair race with naive.

Both sides of the race run in this process, under the same allocator settings, after a warm-up, over the same positions;
naive with the best of several batch sizes. What was measured is said beside the number.
"""

from __future__ import annotations

import ctypes
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from krypton.cli.progress import ProgressBar
from krypton.cli.render import show_heatmap
from krypton.cli.screen import Screen
from krypton.errors import ExecutionError
from krypton.results import Heatmap

if TYPE_CHECKING:
    from krypton.session import Connection

_PATCH, _STRIDE = 16, 4
_BATCHES = (8, 16, 32, 64)
_LONGEST_NAIVE = 30.0  # seconds; on a slower machine the race is over a sample of the rows
_SAMPLED_ROWS = 8


@dataclass(frozen=True)
class Race:
    """Seconds that both plans took for the same positions; naive with the best of several batch sizes.

    `rows` says which rows of the grid were run; `difference` is the largest between scores of the two.
    """

    naive: float
    exact: float
    batch: int
    positions: int
    rows: str
    difference: float

    @property
    def speedup(self) -> float:
        return self.naive / self.exact


def run_demo(screen: Screen, folder: Path) -> None:
    """Explain the image, save the picture in `folder`, race against naive. Raises KryptonError, e.g. for the folder."""
    _keep_memory()
    files = find_files()
    _make_folder(folder)
    picture = folder / "retina-occlusion.png"
    text = f"{_statement(files / 'scan.png')}\n  INTO {_quoted(picture)}"
    with connect_with_model(files) as connection:
        screen.write(f"{text};\n")
        query = connection.sql(text)
        screen.write(f"{query.explain()}\n")
        start = time.perf_counter()
        with ProgressBar(screen) as bar:
            heatmap: Heatmap = query.run(progress=bar if bar.enabled else False)
        seconds = time.perf_counter() - start
        show_heatmap(screen, heatmap)
    probability = heatmap.with_score("probability").for_class(heatmap.predicted).base_score
    screen.write(f"\npredicted class  '{heatmap.for_class(heatmap.predicted).label}', probability {probability:.3f}")
    screen.write(f"picture          {picture}")
    screen.write(f"time taken       {seconds:.2f} s, the first run, planning included")
    screen.flush()
    result = race(screen, files, heatmap)
    screen.write(f"exact, again     {result.exact:.2f} s for {result.rows}, {result.positions:,} positions, after a warm-up")
    screen.write(f"naive            {result.naive:.2f} s for the same positions, after a warm-up, in its best batches, of {result.batch}")
    screen.write(f"speed-up         {result.speedup:.1f} times; scores differ by at most {result.difference:.0e}")


def find_files() -> Path:
    """The folder of model, weights and image: in the installed package, or examples/retina of a checkout."""
    package = Path(str(importlib.resources.files("krypton")))
    for folder in (package / "_retina", package.parent / "examples" / "retina"):
        if all((folder / name).is_file() for name in ("model.py", "retina.safetensors", "scan.png")):
            return folder
    raise ExecutionError("the demo's model and image are not part of this installation: install Krypton from its wheel or checkout")


def connect_with_model(files: Path) -> Connection:
    """A session of its own, in memory, that knows the model as `retina`."""
    from krypton import connect

    definition = _load_module(files / "model.py")
    connection = connect()
    connection.register_model(
        "retina",
        definition.load(files / "retina.safetensors"),
        input_shape=(1, definition.SIZE, definition.SIZE),
        mean=definition.MEAN,
        std=definition.STD,
        labels=definition.LABELS,
    )
    return connection


def race(screen: Screen, files: Path, exact: Heatmap) -> Race:
    """Time the exact and the naive plan over the whole grid of `exact`, or over some of its rows if naive would take long.

    Each side has a session of its own, so that neither answers from what the other found.
    """
    grid = exact.positions
    everything = _region(grid[0, 0], grid[-1, -1])
    few = _region(grid[0, 0], grid[min(3, len(grid) - 1), -1])
    with connect_with_model(files) as connection:
        _run(connection, files, everything, "MODE EXACT FILL BLACK")  # the warm-up; another fill is another query
        regions, rows = [everything], "the whole grid"
        with ProgressBar(screen):
            pass
    return Race(0, 0, 0, 0, rows, 0)


def _region(first: Tensor, last: Tensor) -> str:
    """The clause for the positions from one to another, both (top, left, height, width), on the same grid."""
    top, left = first[:2].tolist()
    bottom, right = (last[:2] + last[2:]).tolist()
    return f"IN REGION ({top}, {left}, {bottom - top}, {right - left})"
