"""Text to lexemes, scripts to statements, and whose a statement is: the parser's first step, on the standard library.

One scan serves Krypton's statements and DuckDB's, so it knows what both write: nested comments, dollar-quoted and
escaped strings. It never fails: what is not closed, or is no lexeme at all, becomes a lexeme that says so (its kind
begins with OPEN_, or is SYMBOL), for DuckDB to judge or for reading.py to report.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import NamedTuple, get_args

from krypton.sql.ast import Listing


class Lexeme(NamedTuple):
    """A piece of text that means something; kinds other than WORD and SYMBOL are terminals of the grammar."""

    kind: str
    text: str
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.text)


BARE_NAME = re.compile(r"[^\W\d]\w*")

# `(?![\w.])`: 16x24px or 1.2.3 is one mistake, not a size and a name. FOREIGN is DuckDB's alone.
_LEXEME = re.compile(
    r"""
      (?P<SPACE>    \s+ | --[^\n]* )
    | (?P<COMMENT>  /\* )
    | (?P<DOLLAR>   \$ (?:[^\W\d]\w*)? \$ )
    | (?P<FOREIGN>  [eE] ' (?: [^'\\] | \\. | '' )* '? )
    | (?P<STRING>   ' [^']* (?: '' [^']* )* '? )
    | (?P<QUOTED>   " [^"]* (?: "" [^"]* )* "? )
    | (?P<PARAM>    \$ [^\W\d]\w* )
    | (?P<SHAPE>    -?[0-9]++ (?: \s*+ [xX×] \s*+ -?[0-9]++ ){2} (?![\w.]) )
    | (?P<SIZE>     -?[0-9]++ \s*+ [xX×] \s*+ -?[0-9]++ (?![\w.]) )
    | (?P<INTEGER>  -?[0-9]++ (?![\w.]) )
    | (?P<DECIMAL>  -? (?: [0-9]++ (?: \. [0-9]*+ )? | \. [0-9]++ ) (?: [eE] [+-]? [0-9]++ )? (?![\w.]) )
    | (?P<WORD>     [^\W\d]\w* )
    | (?P<SYMBOL>   => | -? \.? [0-9] [\w.]* | . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK = re.compile(r"/\*|\*/")

_LISTINGS = {what.upper() for what in get_args(Listing)}
_LONGEST_NEAR_MISS = 24


def scan(text: str) -> Iterator[Lexeme]:
    """The lexemes of a text in order, without space and comments."""
    position = 0
    while position < len(text):
        match = _LEXEME.match(text, position)
        assert match is not None  # SYMBOL takes any character
        kind, stop = str(match.lastgroup), match.end()
        if kind == "COMMENT":
            stop, closed = _end_of_comment(text, position)
            kind = "SPACE" if closed else "OPEN_COMMENT"
        elif kind == "DOLLAR":
            close = text.find(match.group(), stop)
            kind, stop = "FOREIGN", len(text) if close < 0 else close + len(match.group())
        elif kind in ("STRING", "QUOTED") and match.group().count(text[position]) % 2:
            kind = "OPEN_" + kind
        if kind != "SPACE":
            yield Lexeme(kind, text[position:stop], position)
        position = stop


def _end_of_comment(text: str, start: int) -> tuple[int, bool]:
    """Where the block comment at `start` ends, comments inside it counted, and whether it does."""
    depth = 0
    for mark in _COMMENT_MARK.finditer(text, start):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end(), True
    return len(text), False


def split(text: str) -> list[list[Lexeme]]:
    """The lexemes of each statement. What follows the last `;` is always there, if need be as an empty list."""
    statements: list[list[Lexeme]] = [[]]
    for lexeme in scan(text):
        if lexeme.text == ";":
            statements.append([])
        else:
            statements[-1].append(lexeme)
    return [statement for statement in statements[:-1] if statement] + statements[-1:]


def trimmed(text: str) -> str:
    """A text from its first lexeme to its last, without the space and comments around them."""
    lexemes = list(scan(text))
    return text[lexemes[0].start : lexemes[-1].stop] if lexemes else ""


def word(lexemes: list[Lexeme], index: int) -> str:
    """The word at this place in capitals, or an empty string where there is none."""
    return keyword_form(lexemes[index]) if index < len(lexemes) else ""


def keyword_form(lexeme: Lexeme) -> str:
    """A word as a keyword would be spelt; empty for anything else, and for words that only `upper` makes ASCII."""
    return lexeme.text.upper() if lexeme.kind == "WORD" and lexeme.text.isascii() else ""


def closing(lexemes: list[Lexeme], index: int) -> int | None:
    """The index of the parenthesis that closes the one at `index`, or None."""
    depth = 0
    for position in range(index, len(lexemes)):
        depth += {"(": 1, ")": -1}.get(lexemes[position].text, 0)
        if depth == 0:
            return position
    return None


def is_ours(lexemes: list[Lexeme]) -> bool:
    """Whether a statement is Krypton's rather than DuckDB's, by how it begins.

    EXPLAIN OCCLUSION and EXPLAIN ... PLAN are ours also when slightly misspelt: no statement of DuckDB begins so, and
    our message will be the better one.
    """
    first, second = word(lexemes, 0), word(lexemes, 1)
    if first in ("ESTIMATE", "TUNE", "CALIBRATE"):
        return True
    if first == "CREATE":
        return second == "MODEL" or (second, word(lexemes, 2), word(lexemes, 3)) == ("OR", "REPLACE", "MODEL")
    if first in ("DROP", "DESCRIBE"):
        return second == "MODEL"
    if first == "SHOW":
        return second in _LISTINGS
    if first in ("SET", "RESET"):
        return second == "KRYPTON" and len(lexemes) > 2 and lexemes[2].text == "."
    if first == "EXPLAIN":
        explained = _explained(lexemes)
        return _near(explained, "OCCLUSION", 0.6) or _near(explained, "PLAN", 0.75)
    return (second == "OCCLUSION" and _near(first, "EXPLAIN", 0.6)) or lexemes[0].kind == "OPEN_COMMENT"


def _explained(lexemes: list[Lexeme]) -> str:
    """The first word after EXPLAIN and its modifiers."""
    index = 1
    while index < len(lexemes):
        if lexemes[index].text == "(":
            index = closing(lexemes, index) or len(lexemes)
        elif word(lexemes, index) not in ("ANALYZE", "VERBOSE"):
            break
        index += 1
    return word(lexemes, index)


def _near(written: str, keyword: str, cutoff: float) -> bool:
    return len(written) <= _LONGEST_NEAR_MISS and bool(difflib.get_close_matches(written, [keyword], 1, cutoff))
