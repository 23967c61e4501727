"""Statements to bound queries: names and parameters looked up, clauses handed to `bound.build_query` as plain values.

What a name stands for is the session's to say, through `Resolver`. Every error carries the clause it is about, which the
session shows in the text (places.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from krypton.bound import BoundQuery, Clauses, build_query
from krypton.errors import BindError
from krypton.models import Model
from krypton.results.files import check_target, expand_name
from krypton.settings import Settings
from krypton.sql import ast
from krypton.sql.places import clause
from krypton.sql.printer import to_sql


class Resolver(Protocol):
    """What the binder asks a session for; each raises BindError or CatalogError for what is not there."""

    @property
    def settings(self) -> Settings: ...
    def parameter(self, name: str) -> Any: ...
    def model_named(self, name: str) -> Model: ...
    def model_from(self, source: str) -> Model: ...
    def live_model(self, module: Any) -> Model: ...
    def query_paths(self, sql: str) -> list[str]: ...
    def check_new_table(self, name: str) -> None: ...


def bind(query: ast.ExplainOcclusion, resolver: Resolver) -> BoundQuery:
    """The query that a statement describes; raises BindError and its kin, before anything is run."""
    with clause("USING MODEL"):
        model = bind_model(query.model, resolver)
    with clause("OF"):
        images = _images(query.image, resolver)
    rows = isinstance(query.image, ast.Subquery)
    _check_into(query, images, resolver)
    with clause("MASKS"):
        masks = _value(query.masks, resolver)
    with clause("FILL"):
        fill = _fill(query.fill, resolver)
    clauses = Clauses(
        patch=_pair(query.patch),
        stride=_pair(query.stride),
        masks=masks,
        region=None if query.region is None else _region(query.region),
        fill=fill,
        target=query.classes.label if isinstance(query.classes, ast.ClassLabel) else query.classes,
        score=query.score,
        mode=query.mode,
        within=query.within,
        device=query.device,
        options={option.name: option.value for option in query.options},
        into=query.into,
    )
    return build_query(model, images, clauses, resolver.settings, rows=rows, statement=to_sql(query))


def tuned_clauses(statement: ast.TuneModel, resolver: Resolver) -> Clauses:
    """The clauses of TUNE MODEL that are those of a query, too."""
    with clause("FILL"):
        fill = _fill(statement.fill, resolver)
    return Clauses(patch=_pair(statement.patch), stride=_pair(statement.stride), fill=fill, device=statement.device)


def bind_model(model: ast.ModelRef, resolver: Resolver) -> Model:
    """The model that a statement means."""
    match model:
        case ast.ModelName(name):
            return resolver.model_named(name)
        case ast.ModelSource(source):
            return resolver.model_from(source)
        case ast.Param(name):
            return resolver.live_model(resolver.parameter(name))


def parameters(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters handed over, by name; raises BindError when they are not a dictionary of names."""
    if params is None:
        return {}
    if not isinstance(params, Mapping) or not all(isinstance(name, str) for name in params):
        raise BindError(f'params is a dictionary from names to values, such as {{"img": image}}, not {type(params).__name__}')
    return {name.removeprefix("$"): value for name, value in params.items()}


def _images(image: ast.Image, resolver: Resolver) -> list[Any]:
    match image:
        case ast.PathRef(path):
            return [path]
        case ast.Param(name):
            return [resolver.parameter(name)]
        case ast.Subquery(sql):
            return list(resolver.query_paths(sql))


def _value(operand: Any, resolver: Resolver) -> Any:
    """What an operand of MASKS or FILL stands for: a parameter's value, a path, or itself."""
    match operand:
        case ast.Param(name):
            value = resolver.parameter(name)
            if value is None:
                raise BindError(f"parameter ${name} is None")
            return value
        case ast.PathRef(path):
            return path
        case _:
            return operand


def _fill(fill: ast.Fill | None, resolver: Resolver) -> Any:
    match fill:
        case ast.NamedFill(name):
            return name
        case ast.RgbFill(red, green, blue):
            return red, green, blue
        case ast.PathRef(path):
            # A fill's names are words without quotes: what is quoted is a file, and the message should say so.
            return path if "." in path or "/" in path else f"./{path}"
        case _:
            return _value(fill, resolver)


def _pair(size: ast.Size | None) -> tuple[int, int] | None:
    return None if size is None else (size.height, size.width)


def _region(region: ast.Region) -> tuple[int, int, int, int]:
    return region.top, region.left, region.height, region.width


def _check_into(query: ast.ExplainOcclusion, images: list[Any], resolver: Resolver) -> None:
    """Whether the answer has somewhere to go: asked before the query spends its time."""
    with clause("INTO"):
        match query.into:
            case ast.IntoTable(name):
                resolver.check_new_table(name)
            case ast.IntoFile(path):
                _check_placeholders(path, len(images) > 1, _many(query.classes))
                name = str(images[0]) if isinstance(images[0], str) else "image"
                if "{class}" not in path.rpartition("/")[0]:
                    check_target(expand_name(path, name, "class"))


def _many(classes: ast.Classes | None) -> bool:
    return isinstance(classes, ast.ClassAll) or (isinstance(classes, ast.ClassTop) and classes.count > 1)


def _check_placeholders(path: str, images: bool, classes: bool) -> None:
    for several, what, placeholder in ((images, "image", "{image}"), (classes, "class", "{class}")):
        if several and placeholder not in path:
            folder, slash, name = path.rpartition("/")
            stem, dot, suffix = name.rpartition(".")
            better = f"{folder}{slash}{stem}-{placeholder}{dot}{suffix}"
            raise BindError(f"the query gives a map per {what}, but '{path}' is one file: write '{better}'")
