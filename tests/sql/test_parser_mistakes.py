"""What a user reads after a mistake: the place, what was expected, and what was perhaps meant."""

from __future__ import annotations

from textwrap import dedent

import pytest

from krypton import sql
from krypton.errors import ParserError

# Each text is the statement, an empty line, and the whole error.
MISTAKES = [
    """
    EXPLAIN OCCLUSION OF 'cat.jpg' USING MODEL resnet50 PATCH 16 STRDE 4

    unknown clause "STRDE" in EXPLAIN OCCLUSION

    LINE 1: EXPLAIN OCCLUSION OF 'cat.jpg' USING MODEL resnet50 PATCH 16 STRDE 4
                                                                         ^^^^^
    Did you mean "STRIDE"? Expected one of: DEVICE, FILL, FOR CLASS, IN REGION, INTO, MASKS, MODE, SCORE, STRIDE, WITH, WITHIN.
    """,
    """
    EXPLAIN OCCLUSON OF 'cat.jpg' USING MODEL net

    unexpected "OCCLUSON" after EXPLAIN

    LINE 1: EXPLAIN OCCLUSON OF 'cat.jpg' USING MODEL net
                    ^^^^^^^^
    Did you mean "OCCLUSION"? Expected one of: ANALYZE, OCCLUSION OF, PLAN FOR, VERBOSE, "(".
    """,
    """
    EXPLIAN OCCLUSION OF 'cat.jpg'

    unknown statement "EXPLIAN"

    LINE 1: EXPLIAN OCCLUSION OF 'cat.jpg'
            ^^^^^^^
    Did you mean "EXPLAIN"? Expected one of: CALIBRATE, CREATE, DESCRIBE MODEL, DROP MODEL, ESTIMATE, EXPLAIN, RESET krypton., SET krypton., SHOW, TUNE MODEL.
    """,  # noqa: E501
    """
    EXPLAIN ANALYZE PLN FOR EXPLAIN OCCLUSION OF 'a' USING MODEL net

    unexpected "PLN" after ANALYZE

    LINE 1: EXPLAIN ANALYZE PLN FOR EXPLAIN OCCLUSION OF 'a' USING MODEL net
                            ^^^
    Did you mean "PLAN"? Expected one of: PLAN FOR, VERBOSE, "(".
    """,
    """
    EXPLAIN OCCLUSION OF "cat.jpg" USING MODEL net

    unexpected "cat.jpg" after OF

    LINE 1: EXPLAIN OCCLUSION OF "cat.jpg" USING MODEL net
                                 ^^^^^^^^^
    Double quotes are for names, single quotes for strings. Expected one of: a string in single quotes, $parameter, (SELECT ...).
    """,  # noqa: E501
    """
    EXPLAIN OCCLUSION OF 'a' USING MODEL net PATCH big

    unexpected "big" after PATCH

    LINE 1: EXPLAIN OCCLUSION OF 'a' USING MODEL net PATCH big
                                                           ^^^
    Expected one of: a whole number, a size such as 16x24.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' USING MODEL net PATCH 16x24px

    unexpected "16x24px" after PATCH

    LINE 1: EXPLAIN OCCLUSION OF 'a' USING MODEL net PATCH 16x24px
                                                           ^^^^^^^
    Expected one of: a whole number, a size such as 16x24.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' PATCH 16 USING MODEL net patch 8 STRIDE 4

    clause PATCH is written twice in EXPLAIN OCCLUSION

    LINE 1: EXPLAIN OCCLUSION OF 'a' PATCH 16 USING MODEL net patch 8 STRIDE 4
                                                              ^^^^^
    Each clause may be written once.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' USING MODEL net FOR CLASS 1 FOR CLASS 2

    clause FOR CLASS is written twice in EXPLAIN OCCLUSION

    LINE 1: EXPLAIN OCCLUSION OF 'a' USING MODEL net FOR CLASS 1 FOR CLASS 2
                                                                 ^^^
    Each clause may be written once.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' PATCH 16

    missing clause USING MODEL in EXPLAIN OCCLUSION

    LINE 1: EXPLAIN OCCLUSION OF 'a' PATCH 16
                                             ^
    Expected USING MODEL.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' USING MODEL net WITHIN 5

    unexpected end of statement

    LINE 1: EXPLAIN OCCLUSION OF 'a' USING MODEL net WITHIN 5
                                                             ^
    Expected SECONDS.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' USING MODEL net WITH (tau => 1, Tau => 2)

    option "Tau" is written twice

    LINE 1: EXPLAIN OCCLUSION OF 'a' USING MODEL net WITH (tau => 1, Tau => 2)
                                                                     ^^^
    Each option may be written once.
    """,
    """
    EXPLAIN OCCLUSION OF 'a' USING MODEL net WITH (tau = 1)

    unexpected "=" after "tau"

    LINE 1: EXPLAIN OCCLUSION OF 'a' USING MODEL net WITH (tau = 1)
                                                               ^
    Expected "=>".
    """,
    """
    EXPLAIN OCCLUSION OF 'cat.jpg USING MODEL net; SELECT 1

    unterminated string

    LINE 1: EXPLAIN OCCLUSION OF 'cat.jpg USING MODEL net; SELECT 1
                                 ^
    A string ends with a single quote; write '' for a quote inside it.
    """,
    """
    DROP MODEL "net

    unterminated name

    LINE 1: DROP MODEL "net
                       ^
    A quoted name ends with a double quote; write "" for a quote inside it.
    """,
    """
    DROP MODEL net /* or /* not */

    unterminated comment

    LINE 1: DROP MODEL net /* or /* not */
                           ^
    A comment ends with */, and comments inside it count.
    """,
    """
    EXPLAIN OCCLUSION OF (SELECT path FROM t USING MODEL net

    unterminated query: this "(" is never closed

    LINE 1: EXPLAIN OCCLUSION OF (SELECT path FROM t USING MODEL net
                                 ^
    """,
    """
    EXPLAIN OCCLUSION OF ('a.png') USING MODEL net

    unexpected 'a.png': a query in parentheses begins with SELECT

    LINE 1: EXPLAIN OCCLUSION OF ('a.png') USING MODEL net
                                  ^^^^^^^
    """,
    """
    EXPLAIN (FORMAT JSON, format TEXT) PLAN FOR EXPLAIN OCCLUSION OF 'a' USING MODEL net

    option "format" is written twice

    LINE 1: EXPLAIN (FORMAT JSON, format TEXT) PLAN FOR EXPLAIN OCCLUSION OF 'a' USING MODEL net
                                  ^^^^^^
    Each option may be written once.
    """,
    """
    CREATE MODEL net FROM 'net.pt2' LABEL 'a.txt'

    unknown clause "LABEL" in CREATE MODEL

    LINE 1: CREATE MODEL net FROM 'net.pt2' LABEL 'a.txt'
                                            ^^^^^
    Did you mean "LABELS"? Expected one of: ACTIVATION, INPUT, LABELS, MEAN, STD, TRUSTED.
    """,
    """
    CREATE MODEL net FROM 'net.pt2' INPUT 224x224

    unexpected "224x224" after INPUT

    LINE 1: CREATE MODEL net FROM 'net.pt2' INPUT 224x224
                                                  ^^^^^^^
    Expected a shape such as 3x224x224.
    """,
    """
    CREATE MODEL "" FROM 'net.pt2'

    a name cannot be empty

    LINE 1: CREATE MODEL "" FROM 'net.pt2'
                         ^^
    """,
    """
    TUNE MODEL net OVER 'scans' PATCH 8

    missing clause FOR SSIM in TUNE MODEL

    LINE 1: TUNE MODEL net OVER 'scans' PATCH 8
                                               ^
    Expected FOR SSIM.
    """,
    """
    SHOW MODELS ALL

    unexpected "ALL" after MODELS

    LINE 1: SHOW MODELS ALL
                        ^^^
    Expected the end of the statement.
    """,
    """
    SET krypton.batch 32

    unexpected "32" after "batch"

    LINE 1: SET krypton.batch 32
                              ^^
    Expected "=".
    """,
    """
    SET krypton.batch = 9223372036854775808

    number too large

    LINE 1: SET krypton.batch = 9223372036854775808
                                ^^^^^^^^^^^^^^^^^^^
    Numbers have 64 bits.
    """,
    """
    SET krypton.batch = -1e999

    number too large

    LINE 1: SET krypton.batch = -1e999
                                ^^^^^^
    Numbers have 64 bits.
    """,
    """
    SELECT 1; SELECT 2

    expected one statement, but here a second one begins

    LINE 1: SELECT 1; SELECT 2
                      ^^^^^^^^
    """,
]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_shown_in_its_line_with_what_was_expected(case: str) -> None:
    text, _, message = dedent(case).strip("\n").partition("\n\n")
    with pytest.raises(ParserError) as caught:
        sql.parse(text)
    assert str(caught.value) == message


def test_the_place_is_the_line_and_column_of_the_whole_text() -> None:
    text = "SELECT 1;\r\n\r\nEXPLAIN OCCLUSION OF 'a'\r\n\tPATSH 3\r\n;"
    with pytest.raises(ParserError) as caught:
        sql.parse_script(text)
    assert str(caught.value).split("\n")[2:4] == ["LINE 4:  PATSH 3", "         ^^^^^"]
    assert (caught.value.line, caught.value.column) == (4, 2)


def test_a_long_line_is_shown_around_the_place() -> None:
    text = f"EXPLAIN OCCLUSION OF '{'a' * 200}.png' USING MODEL net STRDE 4 WITH (a => '{'b' * 200}')"
    with pytest.raises(ParserError) as caught:
        sql.parse(text)
    line, caret = str(caught.value).split("\n")[2:4]
    assert line.startswith("LINE 1: ...aaaa")
    assert line.endswith("bbbb...")
    assert len(line) == len("LINE 1: ......") + 100
    assert line[caret.index("^") : caret.rindex("^") + 1] == "STRDE"


@pytest.mark.parametrize("text", ["", " ", ";", "-- only a comment", ";;\n/* */ ;"])
def test_a_text_without_a_statement_is_a_mistake(text: str) -> None:
    with pytest.raises(ParserError, match="expected a statement, but the text has none"):
        sql.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "EXPLAIN OCCLUSION OF " + "(" * 100_000,
        "EXPLAIN OCCLUSION OF (SELECT " + "(" * 50_000 + ")" * 50_000 + ") USING MODEL",
        "EXPLAIN OCCLUSION OF 'a' USING MODEL net WITH (" + "a, " * 30_000,
        "EXPLAIN OCCLUSION OF 'a' USING MODEL net PATCH " + "9" * 100_000,
        "DROP MODEL " + "/*" * 50_000,
        "DROP MODEL a " + "b" * 100_000,
        "CREATE MODEL net FROM 'a' MEAN (" + "1, " * 30_000 + "x)",
    ],
    ids=lambda text: text[:40],
)
def test_deep_and_long_mistakes_are_parser_errors_of_a_few_lines(text: str) -> None:
    with pytest.raises(ParserError) as caught:
        sql.parse(text)
    assert len(str(caught.value)) < 1000
