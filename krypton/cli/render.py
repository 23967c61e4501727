"""What a statement gives, as text: heat maps, relations, plans and errors.

A terminal gets colours, tables with a limited number of rows and small pictures; a pipe or a file gets all rows as plain
aligned text. Nothing that comes from the user's data is interpreted: no markup, no control characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table
from rich.text import Text

from krypton.cli.progress import rate
from krypton.cli.screen import Screen
from krypton.results import Heatmap

Fetch: TypeAlias = Callable[..., list[tuple[Any, ...]]]

_MOST_ROWS = 50
_LONGEST_CELL = 200
_MAP_COLUMNS = 60
_MOST_MAPS = 4
# What DuckDB calls the result of a statement that has none, such as CREATE TABLE.
_NO_RESULT = (["Success"], ["Count"])


def show(screen: Screen, result: Any, fetch: Fetch | None = None) -> None:
    """Show whatever a statement gave: nothing, a heat map or several, a relation or table, or a message as it is.

    `fetch` gives a relation's rows, all or at most so many; without it they come straight from the relation.
    """
    if result is None:
        return
    if isinstance(result, Heatmap):
        _show_heatmaps(screen, [result])
    elif isinstance(result, list) and all(isinstance(part, Heatmap) for part in result):
        _show_heatmaps(screen, result)
    elif hasattr(result, "fetchall") and hasattr(result, "columns"):
        _show_relation(screen, result, fetch or _fetch)
    else:
        screen.write(str(result))


def show_error(screen: Screen, error: BaseException) -> None:
    """A user's mistake: the kind of error and its text, as it is."""
    screen.err.print(Text(f"{type(error).__name__}: {printable(str(error))}", style="red"), soft_wrap=True)


def show_heatmap(screen: Screen, heatmap: Heatmap) -> None:
    """One line about a heat map; on a terminal also the map itself."""
    screen.write(summary(heatmap))
    if screen.interactive and screen.out.color_system and heatmap.known.any():
        from krypton.cli.blocks import half_blocks
        from krypton.results import pictures

        screen.out.print(half_blocks(pictures.render(heatmap), min(_MAP_COLUMNS, screen.out.width)), end="")


def summary(heatmap: Heatmap) -> str:
    """Image, class, score, most sensitive position, speed, quality, and where the map was written, on one line."""
    name = Path(heatmap.image.name).name
    parts = [f"{name}: '{heatmap.label}' {heatmap.score_kind} {heatmap.base_score:.4g}"]
    if heatmap.known.any():
        top, left, height, width = heatmap.most_sensitive
        lowest = float(heatmap.heatmap.ravel()[heatmap.most_sensitive_index])
        parts.append(f"most sensitive at ({top}, {left}, {height}, {width}): {lowest:.4g}")
    what = "masks" if heatmap.masks is not None else "positions"
    done, total = int(heatmap.known.sum()), heatmap.known.numel()
    count = f"{done:,} {what}" if heatmap.complete else f"{done:,} of {total:,} {what}"
    seconds = heatmap.info.get("seconds")
    parts.append(f"{count} in {seconds:.2f} s, {rate(done / seconds)}" if seconds else count)
    if heatmap.quality is not None:
        parts.append(str(heatmap.quality))
    if (refined := heatmap.info.get("refined_for", heatmap.label)) != heatmap.label:
        parts.append(f"refined for '{refined}'")
    if written := heatmap.info.get("written"):
        parts.append(f"written to {written}")
    return printable("; ".join(parts))


def show_table(screen: Screen, columns: Sequence[str], rows: Sequence[Sequence[Any]], more: bool = False) -> None:
    """Rows under their column names; `more` says that there are rows beyond these."""
    numeric = [all(_is_number(row[index]) for row in rows) and bool(rows) for index in range(len(columns))]
    cells = [[_cell(value, screen.interactive) for value in row] for row in rows]
    if not screen.interactive:
        _write_aligned(screen, [_cell(column) for column in columns], cells, numeric)
        return
    table = Table(header_style="bold")
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(Text(_cell(column)), justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(_shortened(cell)) for cell in row))
    screen.out.print(table)
    if more:
        screen.say(f"The first {len(rows)} rows are shown; there are more.", style="dim")


def printable(text: str) -> str:
    """A text without control characters other than line ends; a file's name must not steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def _show_heatmaps(screen: Screen, heatmaps: Sequence[Heatmap]) -> None:
    """Those that a terminal has room for, all of them in a pipe; and, once each, the notes of their plans."""
    shown = heatmaps[:_MOST_ROWS] if screen.interactive else heatmaps
    for index, heatmap in enumerate(shown):
        if index < _MOST_MAPS:
            show_heatmap(screen, heatmap)
        else:
            screen.write(summary(heatmap))
    if len(shown) < len(heatmaps):
        screen.say(f"The first {len(shown)} of {len(heatmaps):,} heat maps are shown.", style="dim")
    for note in dict.fromkeys(note for heatmap in heatmaps for note in heatmap.info.get("notes", ())):
        screen.say(f"Note: {printable(note)}", style="dim")


def _fetch(relation: Any, most: int | None = None) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = (relation if most is None else relation.limit(most)).fetchall()
    return rows


def _show_relation(screen: Screen, relation: Any, fetch: Fetch) -> None:
    columns = list(relation.columns)
    if columns in _NO_RESULT and getattr(relation, "type", "QUERY_RELATION") != "QUERY_RELATION":
        return
    if columns == ["explain_key", "explain_value"]:
        for _, plan in fetch(relation):
            screen.write(plan)
        return
    # A relation runs anew at each call, so it is asked once: for one row more than a terminal shows, or for all.
    rows = fetch(relation, _MOST_ROWS + 1 if screen.interactive else None)
    shown = rows[:_MOST_ROWS] if screen.interactive else rows
    show_table(screen, columns, shown, more=len(shown) < len(rows))


def _write_aligned(screen: Screen, header: list[str], rows: list[list[str]], numeric: list[bool]) -> None:
    widths = [max([len(header[index]), *(len(row[index]) for row in rows)]) for index in range(len(header))]
    for row in [header, *rows]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        screen.write("  ".join(cells).rstrip())


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _cell(value: Any, rounded: bool = False) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return printable(f"{value:.6g}" if rounded and isinstance(value, float) else str(value)).replace("\n", " ")


def _shortened(cell: str) -> str:
    return cell if len(cell) <= _LONGEST_CELL else cell[: _LONGEST_CELL - 1] + "…"
