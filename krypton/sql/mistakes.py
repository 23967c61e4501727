"""The text of a ParserError: what is wrong, the line with a caret under the place, and what to write instead.

Used by reading.py and build.py, which know what was expected, and by places.py for errors of other kinds; here are only the
words and the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from krypton.errors import KryptonError, ParserError, did_you_mean

E = TypeVar("E", bound=KryptonError)

_WIDEST_LINE = 100
_LONGEST_WORD = 40


def mistake(text: str, start: int, stop: int, message: str, advice: str = "") -> ParserError:
    """A ParserError about `text[start:stop]`, with attributes `line` and `column` (both from 1)."""
    return marked(ParserError, text, start, stop, message, advice)


def marked(kind: type[E], text: str, start: int, stop: int, message: str, advice: str = "") -> E:
    """The same for an error of any kind: message, line with the place marked, advice."""
    number = text.count("\n", 0, start) + 1
    line_start = text.rfind("\n", 0, start) + 1
    line_stop = text.find("\n", start)
    line = text[line_start : len(text) if line_stop < 0 else line_stop].rstrip("\r")
    shown, left, width = _window(line, start - line_start, stop - line_start)
    head = f"LINE {number}: "
    lines = [message, "", head + shown, " " * (len(head) + left) + "^" * width]
    error = kind("\n".join([*lines, advice] if advice else lines))
    vars(error).update(line=number, column=start - line_start + 1)
    return error


def _window(line: str, start: int, stop: int) -> tuple[str, int, int]:
    """At most `_WIDEST_LINE` columns of a line around a place; where the place begins in them, and its width."""
    visible = "".join(letter if letter.isprintable() else " " for letter in line)
    first, last = 0, len(line)
    if len(line) > _WIDEST_LINE:
        first = max(0, min(start - _WIDEST_LINE // 2, len(line) - _WIDEST_LINE))
        last = min(len(line), first + _WIDEST_LINE)
        visible = ("..." if first else "") + visible[first:last] + ("..." if last < len(line) else "")
    left = start - first + (3 if first else 0)
    return visible, left, max(1, min(stop, last) - start)


def quote(written: str) -> str:
    """What somebody wrote, as a message cites it: short, on one line, strings as they are and the rest in quotes."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in written[:200]).split())
    short = line if len(line) <= _LONGEST_WORD else line[: _LONGEST_WORD - 3] + "..."
    return short if short[:1] in ("'", '"') else f'"{short}"'


def suggest(written: str, keywords: Sequence[str]) -> str:
    """`Did you mean "STRIDE"?` for a word near one of the keywords, or an empty string."""
    if not written or len(written) > _LONGEST_WORD:
        return ""
    return did_you_mean(written, [*keywords, *(phrase.split()[0] for phrase in keywords)]).strip()


def expect(things: Sequence[str]) -> str:
    """`Expected one of: DEVICE, FILL.`"""
    if not things:
        return "Expected the end of the statement."
    return f"Expected {things[0]}." if len(things) == 1 else f"Expected one of: {', '.join(things)}."
