"""The catalog: the embedded DuckDB that one session works with, in memory or in a file, and Krypton's own tables in it.

Schema `krypton`: `about` (the version of these tables), `models` (definitions, as text; live modules only by name, so
that a later session can say what is missing), `graphs` (captured graphs, for `graphs`), `profiles` (of devices) and
`queries` (how long those that ended took), both for `profiles`, `sensitivities` (of layers), `results` (exact values, for
`known`) and `tunings` (of models). The user's tables are the user's: their statements reach DuckDB unchanged, over the same
connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from krypton.duckdb_calls import interruptible, told
from krypton.errors import BindError, CatalogError
from krypton.models import Definition

VERSION = 4
MEMORY = ":memory:"

_TABLES = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.about (version INTEGER);
CREATE TABLE IF NOT EXISTS {schema}.models (
    name VARCHAR, source VARCHAR, input_shape INTEGER[], mean DOUBLE[], std DOUBLE[], labels VARCHAR[],
    activation VARCHAR, trusted BOOLEAN, created TIMESTAMP DEFAULT current_timestamp
);
CREATE TABLE IF NOT EXISTS {schema}.graphs (
    key VARCHAR, graph VARCHAR, tensors BLOB, created TIMESTAMP DEFAULT current_timestamp
);
CREATE TABLE IF NOT EXISTS {schema}.profiles (
    device VARCHAR, profile VARCHAR, created TIMESTAMP DEFAULT current_timestamp
);
CREATE TABLE IF NOT EXISTS {schema}.queries (
    device VARCHAR, model VARCHAR, predicted VARCHAR, seconds DOUBLE, created TIMESTAMP DEFAULT current_timestamp
);
CREATE TABLE IF NOT EXISTS {schema}.sensitivities (
    key VARCHAR, layers VARCHAR, created TIMESTAMP DEFAULT current_timestamp
);
CREATE TABLE IF NOT EXISTS {schema}.results (
    key VARCHAR, places BLOB, logits BLOB, base BLOB, bytes BIGINT, number BIGINT
);
CREATE TABLE IF NOT EXISTS {schema}.tunings (
    key VARCHAR, model VARCHAR, tuning VARCHAR, created TIMESTAMP DEFAULT current_timestamp
);
"""
_FIELDS = "name, source, input_shape, mean, std, labels, activation, trusted"


@dataclass(frozen=True)
class StoredResults:
    """Exact results of one kind: `places` int32 (n, 2), `logits` float32 (n, K), `base` float32 (K,), as bytes."""

    places: bytes
    logits: bytes
    base: bytes


class Catalog:
    """One DuckDB connection. All methods raise CatalogError with DuckDB's own text where DuckDB refuses."""

    def __init__(self, database: str | os.PathLike[str] = MEMORY) -> None:
        self.database = os.fspath(database)
        with told(f"the catalog '{self.database}' cannot be opened: "):
            self._connection = duckdb.connect(os.path.expanduser(self.database) if self.kept else MEMORY)
            # DuckDB takes unknown tables for Python variables of whoever calls it, and that is us: `register` is for those.
            self._connection.execute("SET python_enable_replacements = false")
            # qualified by the database, which DuckDB names after the file: that may be "krypton", too
            ((alias,),) = self._connection.execute("SELECT current_database()").fetchall()
            self._schema = f"{quoted(alias)}.krypton"
            self._make_tables()

    @property
    def kept(self) -> bool:
        """Whether anything outlives the session."""
        return self.database != MEMORY

    def close(self) -> None:
        """Close the database; everything else then raises CatalogError."""
        self._connection.close()

    # Models

    def models(self) -> list[Definition]:
        """All definitions, by name."""
        return [_definition(row) for row in self._rows(f"SELECT {_FIELDS} FROM {self._schema}.models ORDER BY lower(name)")]

    def find_model(self, name: str) -> Definition | None:
        """The definition of that name, in any case."""
        rows = self._rows(f"SELECT {_FIELDS} FROM {self._schema}.models WHERE lower(name) = lower(?)", [name])
        return _definition(rows[0]) if rows else None

    def put_model(self, definition: Definition) -> None:
        """Store a definition, in the place of another of that name."""
        d = definition
        shape = None if d.input_shape is None else list(d.input_shape)
        numbers = [None if values is None else list(values) for values in (d.mean, d.std, d.labels)]
        self.drop_model(d.name)
        self._rows(
            f"INSERT INTO {self._schema}.models ({_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [d.name, d.source, shape, *numbers, d.activation, d.trusted],
        )

    def drop_model(self, name: str) -> None:
        """Forget a definition, if there is one."""
        self._rows(f"DELETE FROM {self._schema}.models WHERE lower(name) = lower(?)", [name])

    # Captured graphs

    def get_graph(self, key: str) -> tuple[str, bytes] | None:
        """A graph as JSON and its own tensors as safetensors, by everything they depend on."""
        rows = self._rows(f"SELECT graph, tensors FROM {self._schema}.graphs WHERE key = ?", [key])
        return rows[0] if rows else None

    def put_graph(self, key: str, graph: str, tensors: bytes) -> None:
        """Store a graph, in the place of another of that key."""
        self._rows(f"DELETE FROM {self._schema}.graphs WHERE key = ?", [key])
        self._rows(f"INSERT INTO {self._schema}.graphs (key, graph, tensors) VALUES (?, ?, ?)", [key, graph, tensors])

    # Device profiles

    def get_profile(self, device: str) -> str | None:
        """A device's profile as JSON."""
        rows = self._rows(f"SELECT profile FROM {self._schema}.profiles WHERE device = ?", [device])
        return rows[0][0] if rows else None

    def put_profile(self, device: str, profile: str) -> None:
        """Store a profile, in the place of the device's earlier one."""
        self._rows(f"DELETE FROM {self._schema}.profiles WHERE device = ?", [device])
        self._rows(f"INSERT INTO {self._schema}.profiles (device, profile) VALUES (?, ?)", [device, profile])

    # Finished queries

    def finished_queries(self, device: str) -> list[tuple[str, str, float]]:
        """(model, predicted milliseconds by part as JSON, seconds) of a device's queries, the latest first."""
        select = f"SELECT model, predicted, seconds FROM {self._schema}.queries WHERE device = ?"
        return self._rows(f"{select} ORDER BY created DESC", [device])

    def put_query(self, device: str, model: str, predicted: str, seconds: float, most: int) -> None:
        """Note a query that ended; of each device the latest `most` are kept."""
        into = f"INSERT INTO {self._schema}.queries (device, model, predicted, seconds) VALUES (?, ?, ?, ?)"
        self._rows(into, [device, model, predicted, seconds])
        first = f"SELECT created FROM {self._schema}.queries WHERE device = ? ORDER BY created DESC LIMIT 1 OFFSET ?"
        self._rows(f"DELETE FROM {self._schema}.queries WHERE device = ? AND created <= ({first})", [device, device, most])

    def forget_queries(self, device: str) -> None:
        """Drop what is known of a device's queries."""
        self._rows(f"DELETE FROM {self._schema}.queries WHERE device = ?", [device])

    # Sensitivities of models' layers

    def get_sensitivities(self, key: str) -> str | None:
        """Those of a model, a patch size and a device, as JSON."""
        rows = self._rows(f"SELECT layers FROM {self._schema}.sensitivities WHERE key = ?", [key])
        return rows[0][0] if rows else None

    def put_sensitivities(self, key: str, layers: str) -> None:
        """Store them, in the place of earlier ones."""
        self._rows(f"DELETE FROM {self._schema}.sensitivities WHERE key = ?", [key])
        self._rows(f"INSERT INTO {self._schema}.sensitivities (key, layers) VALUES (?, ?)", [key, layers])

    # Known results

    def get_results(self, key: str) -> StoredResults | None:
        """What is known under a key."""
        select = f"SELECT places, logits, base FROM {self._schema}.results WHERE key = ? ORDER BY number DESC LIMIT 1"
        rows = self._rows(select, [key])
        return StoredResults(*map(bytes, rows[0])) if rows else None

    def put_results(self, key: str, results: StoredResults, most_bytes: int) -> None:
        """Store what is known under a key, in the place of what was; then drop the oldest until all take at most so much."""
        table, blobs = f"{self._schema}.results", [results.places, results.logits, results.base]
        ((number,),) = self._rows(f"SELECT coalesce(max(number), 0) + 1 FROM {table}")
        # in this order an interrupt loses nothing; a primary key would take ten times as long
        self._rows(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?)", [key, *blobs, sum(map(len, blobs)), number])
        self._rows(f"DELETE FROM {table} WHERE key = ? AND number < ?", [key, number])
        newer = f"(SELECT number, sum(bytes) OVER (ORDER BY number DESC) AS total FROM {table})"
        self._rows(f"DELETE FROM {table} WHERE number IN (SELECT number FROM {newer} WHERE total > ?)", [most_bytes])

    # Tunings

    def tunings(self, key: str | None = None) -> list[str]:
        """Tunings as JSON, the latest last; all of them, or the one of a key."""
        rows = self._rows(f"SELECT tuning FROM {self._schema}.tunings WHERE key = coalesce(?, key) ORDER BY created", [key])
        return [text for (text,) in rows]

    def put_tuning(self, key: str, model: str, tuning: str) -> None:
        """Store a tuning, in the place of an earlier one of that key."""
        self._rows(f"DELETE FROM {self._schema}.tunings WHERE key = ?", [key])
        self._rows(f"INSERT INTO {self._schema}.tunings (key, model, tuning) VALUES (?, ?, ?)", [key, model, tuning])

    # The user's statements and tables

    def sql(self, statement: str, params: Mapping[str, Any] | None = None) -> Any:
        """What DuckDB's client gives for a statement: a relation, or None."""

        def run() -> Any:
            return self._connection.sql(statement, params=dict(params)) if params else self._connection.sql(statement)

        with told():
            return interruptible(self._connection, run)

    def fetch(self, relation: Any, most: int | None = None) -> list[Any]:
        """The rows of a relation, or the first of them. A relation runs anew at each call."""
        with told():
            return interruptible(self._connection, (relation if most is None else relation.limit(most)).fetchall)

    def register(self, name: str, data: Any) -> None:
        """Let statements read an object of Python's (a data frame, an Arrow table, a dictionary of arrays) as a table."""
        with told():
            self._connection.register(name, data)

    def query_paths(self, select: str, params: Mapping[str, Any] | None = None) -> list[str]:
        """The paths that a SELECT gives: its column "path", or its only column. Raises BindError when there are none."""
        relation = self.sql(select, params)
        if relation is None:
            raise BindError("the query for images gives no rows; write (SELECT path FROM ...)")
        names = [name.lower() for name in relation.columns]
        if "path" not in names and len(names) != 1:
            listing = ", ".join(relation.columns)
            raise BindError(f'the query for images must have a column "path", or only one column; it has {listing}')
        column = names.index("path") if "path" in names else 0
        values = [row[column] for row in self.fetch(relation)]
        if not values:
            raise BindError("the query for images gives no rows: there is nothing to explain")
        for number, value in enumerate(values, start=1):
            if not isinstance(value, str):
                kind = "NULL" if value is None else f"{value!r}, which is no text"
                raise BindError(f"row {number} of the query for images has the path {kind}")
        return values

    def has_table(self, name: str) -> bool:
        """Whether the current schema has a table or view of that name, in any case."""
        found = self._rows(
            "SELECT 1 FROM information_schema.tables WHERE lower(table_name) = lower(?) AND table_schema = current_schema()",
            [name],
        )
        return bool(found)

    def write_table(self, name: str, parts: Sequence[Mapping[str, Any]], *, replace: bool = False) -> None:
        """A new table of columns (arrays of one length), part after part; there as a whole or not at all."""
        staging = "krypton_staging"
        with told(f"table {name} cannot be written: "):
            self._connection.execute(f"DROP TABLE IF EXISTS temp.{staging}")
            for number, part in enumerate(parts):
                self._connection.register("krypton_part", dict(part))
                into = f"INSERT INTO temp.{staging}" if number else f"CREATE TEMP TABLE {staging} AS"
                self._connection.execute(f"{into} SELECT * FROM krypton_part")
                self._connection.unregister("krypton_part")
            create = "CREATE OR REPLACE TABLE" if replace else "CREATE TABLE"
            self._connection.execute(f"{create} {quoted(name)} AS SELECT * FROM temp.{staging}")
            self._connection.execute(f"DROP TABLE temp.{staging}")

    def _make_tables(self) -> None:
        tables = _TABLES.format(schema=self._schema)
        existing = self._connection.execute(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = 'krypton' AND table_name = 'about'"
        ).fetchall()
        if existing:
            version = self._connection.execute(f"SELECT version FROM {self._schema}.about").fetchall()
            if version in ([(1,)], [(2,)], [(3,)]):  # lacks tables that can be made now
                self._connection.execute(f"BEGIN; {tables} UPDATE {self._schema}.about SET version = {VERSION}; COMMIT;")
            elif version != [(VERSION,)]:
                raise CatalogError(
                    f"the catalog '{self.database}' was written by another version of Krypton: open it with that version, "
                    "or start a new file"
                )
            return
        self._connection.execute(f"BEGIN; {tables} INSERT INTO {self._schema}.about VALUES ({VERSION}); COMMIT;")

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with told():
            return self._connection.execute(statement, list(values)).fetchall()


def quoted(name: str) -> str:
    """A name as SQL writes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def _definition(row: Sequence[Any]) -> Definition:
    name, source, shape, mean, std, labels, activation, trusted = row
    lists: list[Any] = [None if values is None else tuple(values) for values in (shape, mean, std, labels)]
    return Definition(name, source, lists[0], lists[1], lists[2], lists[3], activation, bool(trusted))
