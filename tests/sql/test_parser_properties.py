"""Properties of the language: printing and parsing are inverse, and no text does worse than a ParserError."""

from __future__ import annotations

import random
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from krypton import sql
from krypton.errors import ParserError
from krypton.sql import ast

TEXTS = st.text(alphabet=st.sampled_from("ab'\";-/*()$ \n\\é{}"), max_size=8) | st.text(max_size=8)
WORDS = st.sampled_from(sql.keywords()).map(str.lower) | st.from_regex(r"[a-zA-Z_é][a-z_0-9]{0,5}", fullmatch=True)
NAMES = WORDS | TEXTS.filter(bool)
INTEGERS = st.integers(-(2**63) + 1, 2**63 - 1) | st.integers(-2, 300)
NUMBERS = INTEGERS | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | st.booleans() | TEXTS


def one_of_literal(literal: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(get_args(literal))


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


PARAMS = st.builds(ast.Param, WORDS)
PATHS = st.builds(ast.PathRef, TEXTS)
SUBQUERIES = st.sampled_from(
    ["SELECT 1", "SELECT (a), ')' FROM t -- (\n WHERE x", "(SELECT 1)", "FROM 'a''b.csv'", "VALUES ('a'), ($$)$$)"]
).map(ast.Subquery)
SIZES = st.builds(ast.Size, INTEGERS, INTEGERS)
FILLS = (
    st.builds(ast.NamedFill, one_of_literal(ast.FillName)) | st.builds(ast.RgbFill, NUMBERS, NUMBERS, NUMBERS) | PATHS | PARAMS
)
DEVICES = st.just("cpu") | TEXTS
CLASSES = (
    st.just(ast.ClassPredicted())
    | st.just(ast.ClassAll())
    | st.builds(ast.ClassIndex, INTEGERS)
    | st.builds(ast.ClassLabel, TEXTS)
    | st.builds(ast.ClassTop, INTEGERS)
)
QUERIES = st.builds(
    ast.ExplainOcclusion,
    PATHS | PARAMS | SUBQUERIES,
    st.builds(ast.ModelName, NAMES) | st.builds(ast.ModelSource, TEXTS) | PARAMS,
    optional(CLASSES),
    optional(one_of_literal(ast.Score)),
    optional(SIZES),
    optional(SIZES),
    optional(PARAMS | PATHS | st.builds(ast.Superpixels, INTEGERS)),
    optional(FILLS),
    optional(st.builds(ast.Region, INTEGERS, INTEGERS, INTEGERS, INTEGERS)),
    optional(one_of_literal(ast.Mode)),
    st.lists(st.builds(ast.WithOption, NAMES, VALUES), max_size=3, unique_by=lambda o: o.name.lower()).map(tuple),
    optional(NUMBERS),
    optional(DEVICES),
    optional(st.builds(ast.IntoFile, TEXTS) | st.builds(ast.IntoTable, NAMES)),
)
CHANNELS = optional(st.lists(NUMBERS, min_size=1, max_size=4).map(tuple))
STATEMENTS = st.one_of(
    QUERIES,
    st.builds(
        ast.ExplainPlan,
        QUERIES,
        st.booleans(),
        st.booleans(),
        optional(one_of_literal(ast.PlanFormat)),
        optional(st.booleans()),
    ),
    st.builds(ast.Estimate, QUERIES),
    st.builds(
        ast.CreateModel,
        NAMES,
        st.builds(ast.ModelSource, TEXTS) | PARAMS,
        st.booleans(),
        optional(st.tuples(INTEGERS, INTEGERS, INTEGERS)),
        CHANNELS,
        CHANNELS,
        optional(TEXTS),
        optional(one_of_literal(ast.Activation)),
        st.booleans(),
    ),
    st.builds(ast.DropModel, NAMES, st.booleans()),
    st.builds(ast.DescribeModel, NAMES),
    st.builds(
        ast.TuneModel,
        NAMES,
        PATHS | SUBQUERIES,
        NUMBERS,
        optional(SIZES),
        optional(SIZES),
        optional(FILLS),
        optional(INTEGERS),
        optional(DEVICES),
    ),
    st.builds(ast.Calibrate, optional(NAMES), optional(DEVICES)),
    st.builds(ast.Show, one_of_literal(ast.Listing)),
    st.builds(ast.SetOption, NAMES, VALUES),
    st.builds(ast.ResetOption, NAMES),
    st.sampled_from(["SELECT ';'", "EXPLAIN SELECT 1", 'DROP TABLE "model"']).map(ast.DuckDBStatement),
)

# Words, pieces and joints of the language in any order: nearly statements.
VALUES_WRITTEN = ["'a'", "$p", "16", "16x24", "3x4x5", "0.5", "1e999", "nan", "name", "krypton.batch", "(SELECT 1)"]
SYMBOLS = ["(", ")", ",", "=>", "=", ".", ";", "-", "'", '"', "--", "/*", "*/", "$$", "\n", "\x00", "\ud800"]
PIECES = st.sampled_from(sql.keywords()) | st.sampled_from(VALUES_WRITTEN) | st.sampled_from(SYMBOLS)
HEADS = st.sampled_from(
    ["", "EXPLAIN OCCLUSION OF 'a' USING MODEL n ", "EXPLAIN PLAN FOR ", "CREATE MODEL n FROM 'a' ", "TUNE MODEL n "]
)


def mistake_of(text: str) -> ParserError | None:
    try:
        sql.parse_script(text)
    except ParserError as error:
        return error
    return None


def parses_or_explains(text: str) -> None:
    error = mistake_of(text)
    if error is None:
        statements = sql.parse_script(text)
        assert sql.parse_script(";\n".join(map(sql.to_sql, statements))) == statements
    else:
        assert 1 <= error.line <= text.count("\n") + 1
        assert f"\n\nLINE {error.line}: " in str(error)
    sql.expected_after(text)


@given(STATEMENTS)
def test_a_printed_statement_parses_to_itself(statement: ast.Statement) -> None:
    text = sql.to_sql(statement)
    assert sql.parse(text) == statement
    assert sql.to_sql(sql.parse(text)) == text


@given(st.lists(STATEMENTS, max_size=3))
def test_a_script_is_its_statements_one_after_another(statements: list[ast.Statement]) -> None:
    assert sql.parse_script(" ;\n".join(map(sql.to_sql, statements))) == statements


@given(QUERIES, st.randoms(use_true_random=False))
def test_clauses_may_come_in_any_order(query: ast.ExplainOcclusion, shuffle: random.Random) -> None:
    """Each clause alone, taken from the printed text of a query that has only it, joined in another order."""
    bare = ast.ExplainOcclusion(query.image, query.model)
    head = sql.to_sql(bare)
    clauses = []
    for field in ast.ExplainOcclusion.__dataclass_fields__:
        if field not in ("image", "model"):
            alone = ast.ExplainOcclusion(query.image, query.model, **{field: getattr(query, field)})
            clauses.append(sql.to_sql(alone)[len(head) :])
    shuffle.shuffle(clauses)
    assert sql.parse(head + "".join(clauses)) == query


@given(st.text(max_size=40))
def test_any_text_parses_or_is_explained(text: str) -> None:
    parses_or_explains(text)


@given(HEADS, st.lists(PIECES, max_size=12), st.sampled_from([" ", ""]))
def test_words_in_any_order_parse_or_are_explained(head: str, pieces: list[str], joint: str) -> None:
    parses_or_explains(head + joint.join(pieces))


@given(STATEMENTS, st.data())
def test_damaged_statements_parse_or_are_explained(statement: ast.Statement, data: st.DataObject) -> None:
    text = sql.to_sql(statement)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    parses_or_explains(text[:start] + data.draw(PIECES | st.just("")) + text[stop:])
    parses_or_explains(text[:start])


@given(HEADS, st.lists(PIECES.filter(lambda piece: piece != ";"), max_size=6))
def test_what_completion_offers_is_taken(head: str, pieces: list[str]) -> None:
    prefix = head + " ".join(pieces) + " "
    for phrase in sql.expected_after(prefix):
        # Whatever is still missing, it is missing after the phrase.
        error = mistake_of(prefix + phrase)
        assert error is None or str(error).startswith(("unexpected end of statement", "missing clause"))
