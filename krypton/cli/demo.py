"""`krypton demo`: the shipped model explained on the shipped image, with plan, picture, and a race against naive inference.

The race is fair: both sides run in this process under the same allocator settings, after a warm-up, each in a session
of its own, so that neither answers from what the other found; naive gets the best of several batch sizes.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import importlib.util
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor

from krypton.cli.progress import ProgressBar
from krypton.cli.render import show_heatmap
from krypton.cli.screen import Screen
from krypton.errors import ExecutionError
from krypton.results import Heatmap
from krypton.session import Connection, connect

_QUERY = "EXPLAIN OCCLUSION OF {image} USING MODEL retina PATCH 16 STRIDE 4"
_ANOTHER_FILL = "FILL BLACK"  # for warm-ups: the same work, and no answer to the query itself
_BATCHES = (8, 16, 32, 64)
_LONGEST_NAIVE = 30.0  # seconds; on a slower machine naive runs on some rows of the grid, and its time is scaled
_SAMPLED_ROWS = 6
_WARM_UP_ROWS = 4


@dataclass(frozen=True)
class Race:
    """Seconds that exact and naive took for all positions of the grid, naive with its best batch size.

    `measured` is how many positions naive was really run on, `difference` the largest between the scores of the two.
    """

    exact: float
    naive: float
    batch: int
    measured: int
    difference: float

    @property
    def speedup(self) -> float:
        return self.naive / self.exact


def run_demo(screen: Screen, folder: Path) -> None:
    """Explain the image, write the picture into `folder`, and race. Raises KryptonError, for instance for the folder."""
    _keep_memory()
    files = find_files()
    _make(folder)
    query = _QUERY.format(image=_quoted(_from_here(files / "scan.png")))
    text = f"{query} INTO {_quoted(folder / 'retina.png')}"
    with connect_with_model(files) as connection:
        start = time.perf_counter()
        lazy = connection.sql(text)
        screen.write(f"{text};\n\n{lazy.explain()}\n")
        with ProgressBar(screen) as bar:
            heatmap: Heatmap = lazy.run(progress=bar)
        first = time.perf_counter() - start
    show_heatmap(screen, heatmap)
    screen.flush()
    result = race(screen, files, query, heatmap)
    predicted = heatmap.for_class(heatmap.predicted)
    lines = {
        "predicted class": f"'{predicted.label}', {predicted.score_kind} {predicted.base_score:.3f}",
        "picture": heatmap.info["written"],
        "time taken": f"{first:.2f} s for reading, capture, planning, {heatmap.known.numel():,} positions and the picture",
        "exact": f"{result.exact:.2f} s after a warm-up, planning included",
        "naive": f"{result.naive:.2f} s after a warm-up, for the same positions in batches of {result.batch}, its best",
        "speed-up": f"{result.speedup:.1f}x over naive; the scores differ by at most {result.difference:.0e}",
    }
    if result.measured < heatmap.known.numel():
        lines["naive"] += f"; scaled from {result.measured:,} positions in evenly drawn rows"
    screen.write("\n" + "\n".join(f"{name:<16} {text}" for name, text in lines.items()))


def find_files() -> Path:
    """The folder of model, weights and image: in the installed package, or examples/retina of a checkout."""
    package = Path(str(importlib.resources.files("krypton")))
    for folder in (package / "_retina", package.parent / "examples" / "retina"):
        if all((folder / name).is_file() for name in ("model.py", "retina.safetensors", "scan.png")):
            return folder
    raise ExecutionError("this installation of Krypton lacks the demo's model and image (examples/retina); install it again")


def connect_with_model(files: Path) -> Connection:
    """A session in memory that knows the model as `retina`."""
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


def race(screen: Screen, files: Path, query: str, whole: Heatmap) -> Race:
    """Time `query`, whose answer is `whole`, exactly and naively.

    Exact runs before and after naive, and its time is the mean, so that a computer that is getting slower favours none.
    """
    with ProgressBar(screen, "racing") as bar:
        before = _time_exact(files, query, bar)
        with connect_with_model(files) as connection:
            rows = len(whole.positions)
            few = min(_WARM_UP_ROWS, rows)
            trial = f"{query} {_ANOTHER_FILL} {_region(whole.positions[:few])}"
            trials = {batch: _inference(_run(connection, f"{trial} {_naive(batch)}", bar)) for batch in _BATCHES}
            batch = min(trials, key=lambda size: trials[size])
            parts = [slice(0, rows)]
            if trials[batch] * rows / few > _LONGEST_NAIVE:
                drawn = np.linspace(0, rows - 1, min(rows, _SAMPLED_ROWS)).round().astype(int).tolist()
                parts = [slice(row, row + 1) for row in drawn]
            seconds, measured, difference = 0.0, 0, 0.0
            for part in parts:
                heatmap = _run(connection, f"{query} {_region(whole.positions[part])} {_naive(batch)}", bar)
                seconds += _inference(heatmap)
                measured += heatmap.known.numel()
                difference = max(difference, float(np.abs(heatmap.heatmap - whole.heatmap[part]).max()))
        after = _time_exact(files, query, bar)
    return Race((before + after) / 2, seconds * whole.known.numel() / measured, batch, measured, difference)


def _time_exact(files: Path, query: str, bar: ProgressBar) -> float:
    """Seconds from the text to the exact answer, planning included, in a new session after a warm-up."""
    with connect_with_model(files) as connection:
        _run(connection, f"{query} {_ANOTHER_FILL}", bar)
        start = time.perf_counter()
        _run(connection, query, bar)
        return time.perf_counter() - start


def _run(connection: Connection, text: str, bar: ProgressBar) -> Heatmap:
    heatmap: Heatmap = connection.sql(text).run(progress=bar)
    return heatmap


def _inference(heatmap: Heatmap) -> float:
    """Seconds that were spent on inference: naive needs no plan, so nothing else is counted against it."""
    return float(heatmap.info["seconds"])


def _naive(batch: int) -> str:
    return f"MODE NAIVE WITH (batch => {batch})"


def _region(positions: Tensor) -> str:
    """The clause for rows of a grid, int64 (rows, columns, 4)."""
    top, left = positions[0, 0, :2].tolist()
    last = positions[-1, -1]
    bottom, right = (last[:2] + last[2:]).tolist()
    return f"IN REGION ({top}, {left}, {bottom - top}, {right - left})"


def _load_module(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("krypton_demo_model", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where the source of a class is looked for, to know its graph again
    specification.loader.exec_module(module)
    return module


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExecutionError(f"the folder '{folder}' cannot be made: {error.strerror}") from None


def _from_here(path: Path) -> Path:
    """The path as one would type it: relative where it lies below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _keep_memory() -> None:
    """Tell glibc to keep the memory that is freed, as benchmarks do: its default makes naive inference look slower than it is.

    The numbers are those of malloc.h; other C libraries have no such function or ignore it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
