"""Sessions: `connect()` gives a `Connection`, whose `sql` takes statements and `register_model` live modules.

Shaped after DuckDB's Python client. Statements that query are lazy (`Query`), others act at once; what is not Krypton's
goes unchanged to the embedded DuckDB of the catalog.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeAlias

from torch import nn

from krypton.bound import check_device
from krypton.catalog import Catalog
from krypton.errors import BindError, CatalogError, KryptonError, unknown
from krypton.graphs import GraphCache
from krypton.library import Library
from krypton.listings import Known, Message, Table, describe, show
from krypton.models import Model
from krypton.planner.rules import RULES
from krypton.query import Query
from krypton.settings import SETTINGS, Settings
from krypton.sql import ast
from krypton.sql.binder import bind, parameters
from krypton.sql.lexemes import Lexeme, split
from krypton.sql.parser import parse, parse_script
from krypton.sql.places import clause, placed

Result: TypeAlias = Any
"""A `Query`, a `Message`, a `Table`, or what DuckDB gives: a relation."""


def connect(database: str | os.PathLike[str] = ":memory:", config: Mapping[str, object] | None = None) -> Connection:
    """A session over a database file, made if need be, or in memory.

    A file keeps models, captured graphs and tables of results. `config` sets settings, by the names that SHOW SETTINGS
    lists. Raises CatalogError when the file cannot be opened, BindError for an unknown setting or value.
    """
    return Connection(database, config)


class Connection:
    """A session; close it, or use it in a `with`. Not to be used from several threads at once."""

    def __init__(self, database: str | os.PathLike[str] = ":memory:", config: Mapping[str, object] | None = None) -> None:
        self.settings = Settings()
        for name, value in (config or {}).items():
            self._set(name, value)
        self._catalog = Catalog(database)
        self._graphs = GraphCache(self._catalog if self._catalog.kept else None)
        self._library = Library(self._catalog)

    def sql(self, text: str, params: Mapping[str, Any] | None = None) -> Result:
        """Run the statements of a text and return what the last one gives.

        EXPLAIN OCCLUSION gives a lazy `Query` (those before the last statement are run); SHOW and DESCRIBE a `Table`;
        EXPLAIN PLAN, CREATE MODEL and other commands a `Message`, when they have acted; everything else what DuckDB's client
        gives. `params` are the values of $names. Raises KryptonError of the kind that fits, before anything is run
        when the text cannot be parsed.
        """
        result: Result = None
        for result in self.script(text, params):
            if isinstance(result, Query) and result is not self._last:
                result.run()
        return result

    def script(self, text: str, params: Mapping[str, Any] | None = None) -> Iterator[Result]:
        """What each statement of a text gives, one after the other, each when it is asked for."""
        raise NotImplementedError

    def register_model(
        self,
        name: str,
        module: nn.Module,
        *,
        input_shape: Sequence[int] | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        labels: Sequence[str] | None = None,
        activation: str | None = None,
    ) -> Model:
        raise NotImplementedError
