"""Calls of DuckDB: its errors as errors of ours, and Ctrl-C heard while it works."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import duckdb

from krypton.errors import CatalogError

T = TypeVar("T")

_LISTENING = 0.05  # seconds; how often to look up from waiting
_KIND = re.compile(r"^[A-Z][A-Za-z ]* Error: ")


@contextlib.contextmanager
def told(prefix: str = "") -> Iterator[None]:
    """DuckDB's errors as CatalogError, with its words; an interrupt as KeyboardInterrupt."""
    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        raise CatalogError(prefix + words(error)) from error
    except RuntimeError as error:
        if str(error) == "Query interrupted":  # DuckDB's word for Ctrl-C in the Python client
            raise KeyboardInterrupt from None
        raise


def words(error: duckdb.Error) -> str:
    """What DuckDB says, without the kind of error before it: our own errors are printed with theirs."""
    return _KIND.sub("", str(error))


def interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], T]) -> T:
    """What `work` gives, done in another thread, so that this one hears Ctrl-C and tells DuckDB, which does not always listen.

    Then KeyboardInterrupt is raised, after the work has stopped: the connection takes one call at a time.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:  # raised again where somebody waits for the work
            errors.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=body, name="krypton-duckdb", daemon=True).start()
        while not done.wait(_LISTENING):
            pass
    except KeyboardInterrupt:
        while not done.wait(_LISTENING):  # again and again: one that comes before the query has begun is lost
            connection.interrupt()
        raise
    if errors:
        raise errors[0]
    return results[0]
