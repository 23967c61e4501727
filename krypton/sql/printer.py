"""Statements to canonical text: the way back from parser.py.

One line, keywords in capitals, clauses in the order of the language, names in quotes only where they need them. Parsing
the text gives the statement again, and printing the parse of canonical text gives that text again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from krypton.sql import ast
from krypton.sql.lexemes import BARE_NAME


def to_sql(statement: ast.Statement) -> str:
    """The canonical text of a statement, without `;`."""
    match statement:
        case ast.ExplainOcclusion():
            return _words(_query(statement))
        case ast.ExplainPlan():
            return _words(_explain_plan(statement))
        case ast.Estimate(query):
            return f"ESTIMATE {to_sql(query)}"
        case ast.CreateModel():
            return _words(_create_model(statement))
        case ast.DropModel(name, if_exists):
            return _words(["DROP MODEL", "IF EXISTS" if if_exists else "", _name(name)])
        case ast.DescribeModel(name):
            return f"DESCRIBE MODEL {_name(name)}"
        case ast.TuneModel():
            return _words(_tune_model(statement))
        case ast.Calibrate(model, device):
            named = "" if model is None else f"MODEL {_name(model)}"
            return _words(["CALIBRATE", named, _device(device)])
        case ast.Show(what):
            return f"SHOW {what.upper()}"
        case ast.SetOption(name, value):
            return f"SET krypton.{_name(name)} = {_value(value)}"
        case ast.ResetOption(name):
            return f"RESET krypton.{_name(name)}"
        case ast.DuckDBStatement(text):
            return text
        case _:
            assert_never(statement)


def _query(query: ast.ExplainOcclusion) -> Iterable[str]:
    yield f"EXPLAIN OCCLUSION OF {_operand(query.image)} USING MODEL {_operand(query.model)}"
    if query.classes is not None:
        yield f"FOR CLASS {_classes(query.classes)}"
    if query.score is not None:
        yield f"SCORE {query.score.upper()}"
    yield from _occlusion(query.patch, query.stride)
    if query.masks is not None:
        yield f"MASKS {_operand(query.masks)}"
    yield _fill(query.fill)
    if query.region is not None:
        box = query.region
        yield f"IN REGION ({box.top}, {box.left}, {box.height}, {box.width})"
    if query.mode is not None:
        yield f"MODE {query.mode.upper()}"
    if query.options:
        yield f"WITH ({', '.join(f'{_name(option.name)} => {_value(option.value)}' for option in query.options)})"
    if query.within is not None:
        yield f"WITHIN {_value(query.within)} SECONDS"
    yield _device(query.device)
    match query.into:
        case ast.IntoFile(path):
            yield f"INTO {_string(path)}"
        case ast.IntoTable(name):
            yield f"INTO TABLE {_name(name)}"


def _explain_plan(statement: ast.ExplainPlan) -> Iterable[str]:
    yield "EXPLAIN"
    yield "ANALYZE" if statement.analyze else ""
    yield "VERBOSE" if statement.verbose else ""
    options = []
    if statement.format is not None:
        options.append(f"FORMAT {statement.format.upper()}")
    if statement.costs is not None:
        options.append("COSTS ON" if statement.costs else "COSTS OFF")
    yield f"({', '.join(options)})" if options else ""
    yield f"PLAN FOR {to_sql(statement.query)}"


def _create_model(statement: ast.CreateModel) -> Iterable[str]:
    yield "CREATE OR REPLACE MODEL" if statement.or_replace else "CREATE MODEL"
    yield f"{_name(statement.name)} FROM {_operand(statement.source)}"
    if statement.input_shape is not None:
        yield "INPUT " + "x".join(str(length) for length in statement.input_shape)
    for clause, numbers in (("MEAN", statement.mean), ("STD", statement.std)):
        if numbers is not None:
            yield f"{clause} ({', '.join(_value(number) for number in numbers)})"
    if statement.labels is not None:
        yield f"LABELS {_string(statement.labels)}"
    if statement.activation is not None:
        yield f"ACTIVATION {statement.activation.upper()}"
    yield "TRUSTED" if statement.trusted else ""


def _tune_model(statement: ast.TuneModel) -> Iterable[str]:
    yield f"TUNE MODEL {_name(statement.model)} OVER {_operand(statement.images)}"
    yield from _occlusion(statement.patch, statement.stride)
    yield _fill(statement.fill)
    yield f"FOR SSIM {_value(statement.ssim)}"
    if statement.sample is not None:
        yield f"SAMPLE {statement.sample}"
    yield _device(statement.device)


def _words(parts: Iterable[str]) -> str:
    return " ".join(part for part in parts if part)


def _operand(operand: ast.Image | ast.ModelRef | ast.Masks) -> str:
    match operand:
        case ast.Param(name):
            return f"${name}"
        case ast.PathRef(text) | ast.ModelSource(text):
            return _string(text)
        case ast.Subquery(sql):
            return f"({sql})"
        case ast.ModelName(name):
            return _name(name)
        case ast.Superpixels(count):
            return f"SUPERPIXELS {count}"
        case _:
            assert_never(operand)


def _classes(classes: ast.Classes) -> str:
    match classes:
        case ast.ClassPredicted():
            return "PREDICTED"
        case ast.ClassIndex(index):
            return str(index)
        case ast.ClassLabel(label):
            return _string(label)
        case ast.ClassTop(count):
            return f"TOP {count}"
        case ast.ClassAll():
            return "ALL"
        case _:
            assert_never(classes)


def _occlusion(patch: ast.Size | None, stride: ast.Size | None) -> Iterable[str]:
    for clause, size in (("PATCH", patch), ("STRIDE", stride)):
        if size is not None:
            square = size.height == size.width
            yield f"{clause} {size.height}" if square else f"{clause} {size.height}x{size.width}"


def _fill(fill: ast.Fill | None) -> str:
    match fill:
        case None:
            return ""
        case ast.NamedFill(name):
            return f"FILL {name.upper()}"
        case ast.RgbFill(red, green, blue):
            return f"FILL RGB({_value(red)}, {_value(green)}, {_value(blue)})"
        case _:
            return f"FILL {_operand(fill)}"


def _device(device: str | None) -> str:
    if device is None:
        return ""
    return "DEVICE CPU" if device == "cpu" else f"DEVICE {_string(device)}"


def _name(name: str) -> str:
    return name if BARE_NAME.fullmatch(name) else '"' + name.replace('"', '""') + '"'


def _string(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _value(value: ast.OptionValue) -> str:
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    return _string(value) if isinstance(value, str) else repr(value)
