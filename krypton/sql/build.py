"""The tree of one statement to nodes of ast.py, with the few mistakes that the grammar cannot say.

Called by parser.py on what reading.py finished. A rule without a method here stays a tree: for clauses the name of the
rule is the field it fills and its one child the value (none: a flag that is set).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lark import Token, Transformer, Tree, v_args
from lark.exceptions import VisitError
from lark.tree import Meta

from krypton.errors import ParserError
from krypton.sql import ast
from krypton.sql.lexemes import trimmed
from krypton.sql.mistakes import mistake

_Clause = Tree[Any]


def build(text: str, tree: Tree[Token]) -> ast.Statement:
    """The statement of a tree; `text` is what the tree's positions refer to."""
    try:
        statement: ast.Statement = _Build(text).transform(tree)
    except VisitError as error:
        if isinstance(error.orig_exc, ParserError):
            raise error.orig_exc from None
        raise
    return statement


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __default_token__(self, token: Token) -> object:
        """The value of a lexeme; for a keyword that is a value, its name in small letters."""
        written = str(token)
        match token.type:
            case "INTEGER":
                return int(written)
            case "DECIMAL":
                return float(written)
            case "SIZE" | "SHAPE":
                return tuple(int(part) for part in re.split("[xX×]", written))
            case "STRING":
                return written[1:-1].replace("''", "'")
            case "QUOTED":
                return written[1:-1].replace('""', '"')
            case "PARAM":
                return ast.Param(written[1:])
            case "SUBQUERY":
                # Its last comment goes with the space around it: a line comment would swallow our parenthesis.
                return ast.Subquery(trimmed(written[1:-1]))
            case "NAME" | "IF":
                return written
            case _:
                return written.lower()

    # Operands and clauses

    def path(self, path: str) -> ast.PathRef:
        return ast.PathRef(path)

    def model_name(self, name: str) -> ast.ModelName:
        return ast.ModelName(name)

    def model_source(self, source: str) -> ast.ModelSource:
        return ast.ModelSource(source)

    def class_predicted(self) -> ast.ClassPredicted:
        return ast.ClassPredicted()

    def class_index(self, index: int) -> ast.ClassIndex:
        return ast.ClassIndex(index)

    def class_label(self, label: str) -> ast.ClassLabel:
        return ast.ClassLabel(label)

    def class_top(self, count: int) -> ast.ClassTop:
        return ast.ClassTop(count)

    def class_all(self) -> ast.ClassAll:
        return ast.ClassAll()

    def size(self, size: int | tuple[int, int]) -> ast.Size:
        return ast.Size(*size) if isinstance(size, tuple) else ast.Size(size, size)

    def superpixels(self, count: int) -> ast.Superpixels:
        return ast.Superpixels(count)

    def named_fill(self, name: ast.FillName) -> ast.NamedFill:
        return ast.NamedFill(name)

    def rgb_fill(self, red: ast.Number, green: ast.Number, blue: ast.Number) -> ast.RgbFill:
        return ast.RgbFill(red, green, blue)

    def region(self, *box: int) -> _Clause:
        return Tree("region", [ast.Region(*box)])

    @v_args(inline=True, meta=True)
    def option(self, meta: Meta, name: str, value: ast.OptionValue) -> tuple[ast.WithOption, Meta]:
        return ast.WithOption(name, value), meta

    def options(self, *options: tuple[ast.WithOption, Meta]) -> _Clause:
        self._refuse_repeated((option.name, meta) for option, meta in options)
        return Tree("options", [tuple(option for option, _ in options)])

    def bare_word(self, name: str) -> bool | str:
        return {"true": True, "false": False}.get(name.lower(), name)

    def into_file(self, path: str) -> ast.IntoFile:
        return ast.IntoFile(path)

    def into_table(self, name: str) -> ast.IntoTable:
        return ast.IntoTable(name)

    def costs_switch(self, switch: str) -> bool:
        return switch == "on"

    def numbers(self, *numbers: ast.Number) -> tuple[ast.Number, ...]:
        return numbers

    # Statements

    @v_args(inline=True, meta=True)
    def query(self, meta: Meta, image: ast.Image, *clauses: _Clause) -> ast.ExplainOcclusion:
        fields = _fields(clauses)
        self._require(fields, "model", "USING MODEL", "EXPLAIN OCCLUSION", meta)
        return ast.ExplainOcclusion(image, **fields)

    def explain_plan(self, *parts: Any) -> ast.ExplainPlan:
        *clauses, query = parts
        self._refuse_repeated((clause.data, clause.meta) for clause in clauses)
        return ast.ExplainPlan(query, **_fields(clauses))

    def estimate(self, query: ast.ExplainOcclusion) -> ast.Estimate:
        return ast.Estimate(query)

    def create_model(self, *parts: Any) -> ast.CreateModel:
        values = [part for part in parts if not isinstance(part, Tree)]
        return ast.CreateModel(*values, **_fields(part for part in parts if isinstance(part, Tree)))

    def drop_model(self, *parts: Any) -> ast.DropModel:
        return ast.DropModel(parts[-1], if_exists=len(parts) > 1)

    def describe_model(self, name: str) -> ast.DescribeModel:
        return ast.DescribeModel(name)

    @v_args(inline=True, meta=True)
    def tune_model(self, meta: Meta, name: str, images: ast.PathRef | ast.Subquery, *clauses: _Clause) -> ast.TuneModel:
        fields = _fields(clauses)
        self._require(fields, "ssim", "FOR SSIM", "TUNE MODEL", meta)
        return ast.TuneModel(name, images, **fields)

    def calibrate(self, *clauses: _Clause) -> ast.Calibrate:
        return ast.Calibrate(**_fields(clauses))

    def show(self, what: ast.Listing) -> ast.Show:
        return ast.Show(what)

    def set_option(self, name: str, value: ast.OptionValue) -> ast.SetOption:
        return ast.SetOption(name, value)

    def reset_option(self, name: str) -> ast.ResetOption:
        return ast.ResetOption(name)

    # Mistakes

    def _require(self, fields: dict[str, Any], field: str, clause: str, statement: str, meta: Meta) -> None:
        if field not in fields:
            message = f"missing clause {clause} in {statement}"
            raise mistake(self._text, meta.end_pos, meta.end_pos, message, f"Expected {clause}.")

    def _refuse_repeated(self, named: Iterable[tuple[str, Meta]]) -> None:
        seen: set[str] = set()
        for name, meta in named:
            if name.lower() in seen:
                stop = meta.start_pos + len(name)
                message = f'option "{name}" is written twice'
                raise mistake(self._text, meta.start_pos, stop, message, "Each option may be written once.")
            seen.add(name.lower())


def _fields(clauses: Iterable[_Clause]) -> dict[str, Any]:
    return {str(clause.data): clause.children[0] if clause.children else True for clause in clauses}
