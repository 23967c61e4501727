"""The tables of `benchmarks.exact`, for the terminal and as Markdown: `python -m benchmarks.tables [results.json]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.contenders import CONTENDERS

Cell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Plain:
    """A titled table of texts; the first column is aligned left, all others right."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


NAMES = {
    "vgg16": "VGG16",
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "inception_v3": "Inception3",
    "densenet121": "DenseNet121",
    "mobilenet_v2": "MobileNetV2",
}


def of(rows: Sequence[dict[str, Any]]) -> list[Plain]:
    """Times and speed-ups under the tuned allocator, and both under the default one; tables without rows are left out."""
    tuned = [row for row in rows if row["allocator"] == "tuned"]
    default = [row for row in rows if row["allocator"] == "default"]
    found = [
        _table("tuned allocator, milliseconds per position", tuned, _times(tuned)),
        _table("tuned allocator, speed-ups and what was wanted", tuned, SPEEDUPS),
        _table("tuned allocator, exact against the arithmetic", tuned, ARITHMETIC),
        _table("default allocator, milliseconds per position", default, [*_times(default), AGAINST_CAPTUM]),
    ]
    return [table for table in found if table.rows]


def _table(title: str, rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, Cell]]) -> Plain:
    columns = [
        ("model", lambda row: NAMES.get(row["model"]) or str(row["model"])),
        ("input", lambda row: f"{row['size']}²"),
        *columns,
    ]
    return Plain(title, [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def _times(rows: Sequence[dict[str, Any]]) -> list[tuple[str, Cell]]:
    """A column for every contender that took part somewhere."""

    def cell(name: str) -> Cell:
        def text(row: dict[str, Any]) -> str:
            if name not in row["ms"]:
                return "–"
            batch = row["details"][name].get("batch")
            return f"{row['ms'][name]:.2f}" + (f" ({batch})" if batch else "")

        return text

    return [(c.title, cell(c.name)) for c in CONTENDERS if any(c.name in row["ms"] for row in rows)]


def _against(speedup: str, aim: str = "", always: bool = True) -> Cell:
    """A speed-up with its aim, "3.70× ≥ 3.6" where it is reached and "3.50× < 3.6" where it is missed; `always`: also
    where there is no aim."""

    def text(row: dict[str, Any]) -> str:
        reached, goal = row["speedups"].get(speedup), row["wanted"].get(aim)
        if reached is None or (goal is None and not always):
            return "–" if goal is None else f"– (≥ {goal:g})"
        return f"{reached:.2f}×" + ("" if goal is None else f" {'≥' if reached >= goal else '<'} {goal:g}")

    return text


def _ratio(name: str) -> Cell:
    return lambda row: f"{row[name]:.2f}×" if name in row else "–"


def _share(name: str) -> Cell:
    return lambda row: f"{row[name]:.0%}" if name in row else "–"


def _rate(name: str) -> Cell:
    return lambda row: f"{row[name]:.0f}" if name in row else "–"


def _error(row: dict[str, Any]) -> str:
    error = row["details"].get("tolerance", {}).get("error")
    return "–" if error is None else f"{error:.2%}"


def _peaks(row: dict[str, Any]) -> str:
    return f"{row['peak_mb_naive']:,} / {row['peak_mb_exact']:,}" if "peak_mb_exact" in row else "–"


SPEEDUPS: list[tuple[str, Cell]] = [
    ("exact over channels_last", _against("exact/channels_last", "channels_last")),
    ("the same, earlier aim", _against("exact/channels_last", "earlier", always=False)),
    ("exact over fastest stock", _against("exact/fastest", "fastest")),
    ("tolerance over fastest stock", _against("tolerance/fastest", "tolerance")),
    ("the same, model seen before", _against("tolerance_again/fastest")),
    ("error", _error),
    ("exact over Captum", _against("exact/captum")),
    ("exact over MONAI", _against("exact/monai")),
]
ARITHMETIC: list[tuple[str, Cell]] = [
    ("exact over channels_last", _against("exact/channels_last")),
    ("plan's arithmetic", _ratio("arithmetic")),
    ("bound", _ratio("bound")),
    ("GFLOP/s", _rate("gflops")),
    ("GEMM GFLOP/s", _rate("gemm_gflops")),
    ("share of GEMM rate", _share("gemm_share")),
    ("share of bound", _share("bound_share")),
    ("peak MB, naive / exact", _peaks),
]
AGAINST_CAPTUM: tuple[str, Cell] = ("exact over Captum", _against("exact/captum", "captum"))


def rich_table(plain: Plain) -> Table:
    table = Table(title=plain.title, title_justify="left")
    for place, heading in enumerate(plain.headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in plain.rows:
        table.add_row(*row)
    return table


def markdown(plain: Plain) -> str:
    lines = [plain.headings, ["---", *["---:"] * (len(plain.headings) - 1)], *plain.rows]
    return f"{plain.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/exact.json")
    print("\n".join(markdown(table) for table in of(json.loads(path.read_text())["results"])))


if __name__ == "__main__":
    main()
