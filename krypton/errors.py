"""Every mistake a user can make, as one family of exceptions with a readable text.

The command line prints `str(error)` and exits with status 1; anything that is not a `KryptonError` is a bug of ours.
A message says what is wrong and where, what was expected, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KryptonError(Exception):
    """Base of all errors that a user can cause and mend."""


class ParserError(KryptonError):
    """A statement is not in the language; the text carries the line, a caret and what was expected."""


class BindError(KryptonError):
    """A statement or call is well-formed but names something that does not exist or does not fit."""


class ImageError(BindError):
    """An image, fill or mask cannot be read, or does not fit the model."""


class CaptureError(KryptonError):
    """A model cannot be loaded or turned into a dataflow graph."""


class PlanError(KryptonError):
    """A query cannot be planned, or a plan (perhaps read from JSON) is not valid."""


class ExecutionError(KryptonError):
    """Running a plan failed: memory, device, or an output that cannot be written."""


class CatalogError(KryptonError):
    """The catalog (models, settings, stored results) cannot do what was asked."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`' Did you mean "STRIDE"?'` for the nearest known word, or an empty string."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f' Did you mean "{by_lower[close[0]]}"?' if close else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """`unknown <kind> "<word>".` with a suggestion and the list of what there is."""
    names = sorted(known)
    listing = ", ".join(names) if names else "there are none yet"
    return f'unknown {kind} "{word}".{did_you_mean(word, names)} Known: {listing}.'
