"""Sessions: `connect()` gives a `Connection`, whose `sql` takes statements and `register_model` live modules.

Shaped after DuckDB's Python client. Statements that query are lazy (`Query`), others act at once; what is not Krypton's
goes unchanged to the embedded DuckDB of the catalog.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

from torch import nn

from krypton.bound import check_device
from krypton.catalog import MEMORY, Catalog
from krypton.errors import BindError, CatalogError, KryptonError, unknown
from krypton.graphs import GraphCache
from krypton.ir.occlusions import Grid
from krypton.ir.plan import QueryPlan
from krypton.library import Library
from krypton.listings import Known, Message, Table, calibration, describe, show
from krypton.models import (
    Definition,
    Model,
    check_activation,
    check_channel_values,
    check_labels,
    check_shape,
    read_labels,
)
from krypton.planner.optimizer import plan_query
from krypton.planner.rules import RULES
from krypton.profiles import Profiles
from krypton.progress import Report, reporting
from krypton.query import Query
from krypton.settings import Settings
from krypton.sql import ast
from krypton.sql.binder import bind, parameters, tuned_clauses
from krypton.sql.lexemes import Lexeme, split
from krypton.sql.parser import parse, parse_script
from krypton.sql.places import clause, placed
from krypton.sql.printer import to_sql
from krypton.tuning import Workplace, image_paths, tune
from krypton.tunings import Tuning, Tunings

Result: TypeAlias = Any
"""A `Query`, an `Estimate`, a `Tuning`, a `Message`, a `Table`, or what DuckDB's client gives: a relation."""


def connect(database: str | os.PathLike[str] = MEMORY, config: Mapping[str, object] | None = None) -> Connection:
    """A session over a database file, made if need be, or in memory.

    A file keeps models, captured graphs and tables of results. `config` sets settings, by the names that SHOW SETTINGS
    lists. Raises CatalogError when the file cannot be opened, BindError for an unknown setting or value.
    """
    return Connection(database, config)


class Connection:
    """A session, for one thread at a time; close it, or use it in a `with`."""

    def __init__(self, database: str | os.PathLike[str] = MEMORY, config: Mapping[str, object] | None = None) -> None:
        self.settings = Settings()
        for name, value in (config or {}).items():
            self._set(name, value)
        self.catalog = Catalog(database)
        self.graphs = GraphCache(self.catalog if self.catalog.kept else None)
        self.library = Library(self.catalog)
        self.profiles = Profiles(self.catalog)
        self.tunings = Tunings(self.catalog)

    def sql(self, text: str, params: Mapping[str, Any] | None = None, *, progress: bool | Report = False) -> Result:
        """Run the statements of a text and return what the last one gives.

        EXPLAIN OCCLUSION gives a lazy `Query`; before the last statement, it is run. ESTIMATE gives an `Estimate`, TUNE a
        `Tuning`, SHOW and DESCRIBE a `Table`, EXPLAIN PLAN and commands a `Message`, and everything else is DuckDB's: SELECT
        gives a relation. `params` are the values of $names; `progress` is for commands that take long (see `Query.run`).
        Raises a KryptonError of the kind that fits; nothing is run when the text cannot be parsed.
        """
        *earlier, last = self._statements(text, params, progress)
        for act in earlier:
            result = act()
            if isinstance(result, Query):
                result.run()
        return last()

    def script(self, text: str, params: Mapping[str, Any] | None = None) -> Iterator[Result]:
        """What each statement of a text gives, one after the other, as `sql` would; queries are not run, also earlier ones.

        A statement acts when its result is asked for, and may use what those before it made.
        """
        for act in self._statements(text, params):
            yield act()

    def register(self, name: str, data: Any) -> None:
        """Let statements read a data frame, an Arrow table or a dictionary of arrays as a table, as DuckDB's `register` does.

        Tables are looked up by registered names alone, never among the caller's variables. Raises CatalogError.
        """
        self._check_open()
        self.catalog.register(name, data)

    def fetch(self, relation: Any, most: int | None = None) -> list[tuple[Any, ...]]:
        """The rows of a relation that `sql` gave, at most that many; unlike the relation's own methods it hears Ctrl-C at once.

        Raises CatalogError when the query fails, which may show only now.
        """
        self._check_open()
        return self.catalog.fetch(relation, most)

    def models(self) -> list[str]:
        """The names of all models."""
        return [definition.name for definition in self.library.definitions()]

    def labels(self, model: str) -> tuple[str, ...]:
        """The labels of a model, as far as they are known without loading it; raises BindError for an unknown model."""
        known = self.library.live(model)
        return (known.labels if known is not None else self.library.definition(model).labels) or ()

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
        """Give a live module a name in this session, in the place of any other model of that name.

        The module takes float32 (B, C, H, W) and gives logits (B, K); it is used as it is at the time of each query, in
        eval mode, and left as it was. `input_shape` is (C, H, W), by default 224x224 with the channels of the first
        convolution. `mean` and `std`, one number per channel or one for all, are subtracted from and divide pixels in
        [0, 1]; the default changes nothing. `labels` are K names; `activation` is "softmax", "sigmoid" or "none", by
        default softmax, for one output sigmoid. A catalog file keeps the name only. Raises BindError and CaptureError.
        """
        self._check_open()
        if not isinstance(name, str) or not name:
            raise BindError(f"a model's name is a text, not {name!r}")
        if not isinstance(module, nn.Module):
            raise BindError(f"register_model takes a torch.nn.Module, not {type(module).__name__}; for files: CREATE MODEL")
        return self.library.register(
            make_definition(name, input_shape=input_shape, mean=mean, std=std, labels=labels, activation=activation), module
        )

    def close(self) -> None:
        """Close the database. The session cannot be used any more."""
        self.catalog.close()
        self._closed = True

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    _closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise CatalogError("the connection is closed: make a new one with krypton.connect()")

    def _statements(
        self, text: str, params: Mapping[str, Any] | None, progress: bool | Report = False
    ) -> list[Callable[[], Result]]:
        """A function for each statement of a text, that carries it out; raises ParserError, and BindError for `params`."""
        statements = parse_script(text)
        if not statements:
            parse(text)  # says that there is none
        lexemes = [lexemes for lexemes in split(text) if lexemes]
        scope = _Scope(self, parameters(params))
        scope.check_used(lexemes)
        return [
            functools.partial(self._placed, statement, scope, text, written, progress)
            for statement, written in zip(statements, lexemes, strict=True)
        ]

    def _placed(
        self, statement: ast.Statement, scope: _Scope, text: str, lexemes: list[Lexeme], progress: bool | Report
    ) -> Result:
        """What a statement gives, its errors shown in the text."""
        self._check_open()
        try:
            return self._act(statement, scope, progress)
        except KryptonError as error:
            raise placed(error, text, lexemes) from error.__cause__

    def _act(self, statement: ast.Statement, scope: _Scope, progress: bool | Report) -> Result:
        match statement:
            case ast.ExplainOcclusion():
                return Query(bind(statement, scope), self.graphs, self.catalog, self.profiles, self.tunings)
            case ast.ExplainPlan(query, analyze, verbose, format, costs):
                lazy = Query(bind(query, scope), self.graphs, self.catalog, self.profiles, self.tunings)
                shown = lazy.explain(format=format or "text", costs=costs is not False, analyze=analyze, verbose=verbose)
                return Message(shown)
            case ast.CreateModel():
                return self._create_model(statement, scope)
            case ast.DropModel(name, if_exists):
                with clause("MODEL"):
                    dropped = self.library.drop(name, if_exists=if_exists)
                return Message(f"model {name} is dropped" if dropped else f"there is no model {name}")
            case ast.DescribeModel(name):
                return self._describe(name)
            case ast.Show(what):
                return show(what, Known(self.catalog, self.settings, self.library.live))
            case ast.SetOption(name, value):
                return self._set(name, value)
            case ast.ResetOption(name):
                self.settings.reset(name)
                return Message(f"krypton.{name.lower()} is reset")
            case ast.DuckDBStatement(written):
                return self.catalog.sql(written, scope.parameters_of(written))
            case ast.Estimate(query):
                return Query(bind(query, scope), self.graphs, self.catalog, self.profiles, self.tunings).estimate()
            case ast.TuneModel():
                return self._tune(statement, scope, progress)
            case ast.Calibrate(model, device):
                return self._calibrate(model, device, progress)

    def _set(self, name: str, value: object) -> Message:
        """Check and store a setting; rules and devices are checked here, for they are not known where settings are."""
        key = name.lower().removeprefix("krypton.")
        converted = Settings({key: value})[key]
        if key == "device":
            converted = check_device(converted)
        if key == "disabled_rules":
            rules = [rule.name for rule in RULES]
            converted = tuple(rule.lower() for rule in converted)
            for rule in converted:
                if rule not in rules:
                    raise BindError(unknown("rule", rule, rules))
        self.settings.set(key, converted)
        shown = ", ".join(converted) if isinstance(converted, tuple) else converted
        return Message(f"krypton.{key} = {shown}")

    def _create_model(self, statement: ast.CreateModel, scope: _Scope) -> Message:
        with clause("LABELS"):
            labels = None if statement.labels is None else read_labels(statement.labels)
        with clause("INPUT"):
            shape = None if statement.input_shape is None else check_shape(statement.input_shape)
        given = scope.parameter(statement.source.name) if isinstance(statement.source, ast.Param) else None
        source = statement.source.source if isinstance(statement.source, ast.ModelSource) else None
        definition = Definition(
            statement.name, source, shape, statement.mean, statement.std, labels, statement.activation, statement.trusted
        )
        with clause("FROM"):
            model = self.library.create(definition, given, or_replace=statement.or_replace)
        channels, height, width = model.preprocessing.shape
        text = f"model {model.name}: input {channels}x{height}x{width}, outputs {model.outputs:,}, {model.activation}"
        return Message("\n".join([text, *(f"note: {note}" for note in model.notes)]))

    def _calibrate(self, model: str | None, device: str | None, progress: bool | Report) -> Table:
        with clause("DEVICE"):
            where = check_device(device or self.settings["device"])
        plans = []
        if model is not None:
            with clause("MODEL"):
                plans.append(self._usual_plan(self.library.named(model), where))
        with reporting(progress, f"calibrating {where}") as report:
            return calibration(where, self.profiles.measure(where, plans, report))

    def _tune(self, statement: ast.TuneModel, scope: _Scope, progress: bool | Report) -> Tuning:
        with clause("MODEL"):
            model = self.library.named(statement.model)
        with clause("OVER"):
            images = statement.images
            paths = image_paths(images.path) if isinstance(images, ast.PathRef) else scope.query_paths(images.sql)
        clauses = tuned_clauses(statement, scope)
        place = Workplace(self.graphs, self.catalog, self.profiles, self.tunings, self.settings)
        with reporting(progress, f"tuning {model.name}") as report:
            return tune(model, paths, clauses, statement.ssim, statement.sample, place, report, to_sql(statement))

    def _usual_plan(self, model: Model, device: str) -> QueryPlan:
        """The plan of a query as most are: patch 16, stride 4 on the whole image."""
        captured = self.graphs.captured(model, keep=self.settings["cache_graphs"])
        _, height, width = model.preprocessing.shape
        patch, stride = min(16, height, width), 4
        return plan_query(captured.model, Grid((height, width), (patch, patch), (stride, stride)), device=device)

    def _describe(self, name: str) -> Table:
        with clause("MODEL"):
            definition = self.library.definition(name)
        try:
            return describe(definition, self.library.named(name))
        except KryptonError as error:
            return describe(definition, None, str(error))


def make_definition(
    name: str,
    *,
    input_shape: Sequence[int] | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    labels: Sequence[str] | None,
    activation: str | None,
) -> Definition:
    """What a caller says about a live module, checked; see `Connection.register_model`."""
    return Definition(
        name,
        None,
        None if input_shape is None else check_shape(input_shape),
        check_channel_values("mean", mean),
        check_channel_values("std", std),
        None if labels is None else check_labels(labels),
        check_activation(activation),
    )


@dataclass
class _Scope:
    """One call of `sql`: the session and the parameters of the call, as the binder's `Resolver`."""

    connection: Connection
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.connection.settings

    def parameter(self, name: str) -> Any:
        if name not in self.given:
            given = ", ".join(sorted(self.given)) or "none"
            raise BindError(f'parameter ${name} has no value: sql(text, params={{"{name}": ...}}). Given: {given}')
        return self.given[name]

    def parameters_of(self, text: str) -> dict[str, Any]:
        """Those that a statement names; DuckDB wants no others."""
        return {name: self.parameter(name) for name in dict.fromkeys(_names(lexeme for part in split(text) for lexeme in part))}

    def check_used(self, lexemes: list[list[Lexeme]]) -> None:
        used = set(_names(lexeme for statement in lexemes for lexeme in statement))
        unused = sorted(set(self.given) - used)
        if unused:
            raise BindError(f"no statement uses these parameters: {', '.join(unused)}. A text writes them ${unused[0]}")

    def model_named(self, name: str) -> Model:
        return self.connection.library.named(name)

    def model_from(self, source: str) -> Model:
        return self.connection.library.from_source(source)

    def live_model(self, given: Any) -> Model:
        return self.connection.library.from_object(given)

    def query_paths(self, sql: str) -> list[str]:
        return self.connection.catalog.query_paths(sql, self.parameters_of(sql))

    def check_new_table(self, name: str) -> None:
        if self.connection.catalog.has_table(name):
            raise BindError(f"table {name} exists already: choose another name, or drop it first with DROP TABLE {name}")


def _names(lexemes: Any) -> list[str]:
    """The names of all parameters among lexemes."""
    return [lexeme.text[1:] for lexeme in lexemes if lexeme.kind == "PARAM"]
