"""Keeping PyTorch quiet while it is tried whether something works: what matters is said by the error that comes of it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, without PyTorch's log, and without what it prints on standard error; all as before afterwards."""
    with warnings.catch_warnings(), _unlogged(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Loggers without a level of their own, which includes those to come, have that of the next one above."""
    loggers = [logging.getLogger("torch")]
    loggers += [known for name, known in _known_loggers() if name.startswith("torch.") and known.level != logging.NOTSET]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _known_loggers() -> list[tuple[str, logging.Logger]]:
    items = list(logging.root.manager.loggerDict.items())
    return [(name, known) for name, known in items if isinstance(known, logging.Logger)]
