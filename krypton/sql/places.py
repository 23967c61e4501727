"""Where in a statement an error belongs: errors carry the clause they are about, and get its place in the text shown.

The nodes of ast.py have no positions, so that equal statements are equal. Each clause stands once in a statement and
begins with words of its own: that is enough to find it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from krypton.errors import KryptonError
from krypton.sql.lexemes import Lexeme, word
from krypton.sql.mistakes import marked

# The words that begin a clause, and whether a name follows that might itself look like a clause.
_CLAUSES: dict[tuple[str, ...], bool] = {
    ("OF",): False,
    ("USING", "MODEL"): True,
    ("FOR", "CLASS"): False,
    ("SCORE",): False,
    ("PATCH",): False,
    ("STRIDE",): False,
    ("MASKS",): False,
    ("FILL",): False,
    ("IN", "REGION"): False,
    ("MODE",): False,
    ("WITH",): False,
    ("WITHIN",): False,
    ("DEVICE",): False,
    ("INTO", "TABLE"): True,
    ("INTO",): False,
    ("FROM",): False,
    ("INPUT",): False,
    ("MEAN",): False,
    ("STD",): False,
    ("LABELS",): False,
    ("ACTIVATION",): False,
    ("TRUSTED",): False,
    ("MODEL",): True,
    ("OVER",): False,
    ("FOR", "SSIM"): False,
    ("SAMPLE",): False,
}


@contextlib.contextmanager
def clause(words: str) -> Iterator[None]:
    """Errors in this block are about that clause, unless they say another: `with clause("IN REGION"): ...`."""
    try:
        yield
    except KryptonError as error:
        vars(error).setdefault("clause", words)
        raise


def placed(error: KryptonError, text: str, lexemes: Sequence[Lexeme]) -> KryptonError:
    """The error with its clause marked in the text of its statement; as it was if it has none there, or a place already."""
    span = find_clause(list(lexemes), getattr(error, "clause", ""))
    if span is None or hasattr(error, "line"):
        return error
    return marked(type(error), text, *span, str(error))


def find_clause(lexemes: list[Lexeme], words: str) -> tuple[int, int] | None:
    """Where a clause begins and ends in the text, None when it is not written."""
    starts = list(_starts(lexemes))
    for number, (index, found) in enumerate(starts):
        if " ".join(found) == words or (words == "INTO" and found[0] == "INTO"):
            end = starts[number + 1][0] if number + 1 < len(starts) else len(lexemes)
            return lexemes[index].start, lexemes[end - 1].stop
    return None


def _starts(lexemes: list[Lexeme]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The index of each clause's first lexeme, and the words it begins with."""
    depth, index = 0, 0
    while index < len(lexemes):
        depth += {"(": 1, ")": -1}.get(lexemes[index].text, 0)
        step = 1
        if depth == 0:
            for words, named in _CLAUSES.items():
                if tuple(word(lexemes, index + offset) for offset in range(len(words))) == words:
                    yield index, words
                    step = len(words) + named
                    break
        index += step
