"""Text to statements: the parser as the rest of Krypton sees it.

lexemes.py cuts the text, reading.py runs the grammar over the lexemes of one statement, build.py makes the nodes of
ast.py; printer.py is the way back. Lark is only imported when a statement is ours.
"""

from __future__ import annotations

from krypton.errors import ParserError
from krypton.sql.ast import DuckDBStatement, Statement
from krypton.sql.lexemes import Lexeme, is_ours, split
from krypton.sql.mistakes import mistake


def parse(text: str) -> Statement:
    """The one statement of a text, with or without `;` at its end.

    Raises ParserError when the text has no statement, several, or a mistake in it.
    """
    statements = [statement for statement in split(text) if statement]
    if not statements:
        raise mistake(text, len(text), len(text), "expected a statement, but the text has none")
    if len(statements) > 1:
        first, last = statements[1][0], statements[1][-1]
        raise mistake(text, first.start, last.stop, "expected one statement, but here a second one begins")
    return _parse_statement(text, statements[0])


def parse_script(text: str) -> list[Statement]:
    """All statements of a text, in order; raises ParserError at the first mistake."""
    return [_parse_statement(text, statement) for statement in split(text) if statement]


def keywords() -> tuple[str, ...]:
    """The keywords of the language in alphabetical order; none of them is reserved."""
    from krypton.sql.reading import keyword_terminals

    return tuple(sorted(keyword_terminals()))


def expected_after(text: str) -> tuple[str, ...]:
    """The keywords and clauses that may follow a text, in alphabetical order, for completion.

    Clauses that are already written are left out. A text that ends within a word gets what that word can become. Empty
    where only a name, number or string can follow, and after what is not in the language.
    """
    from krypton.sql.reading import Reading

    lexemes = split(text)[-1]
    begun = ""
    if lexemes and lexemes[-1].kind == "WORD" and lexemes[-1].stop == len(text):
        begun = lexemes.pop().text.upper()
    reading = Reading(text)
    try:
        reading.feed(lexemes)
    except ParserError:
        return ()
    return tuple(phrase for phrase in reading.expected().keywords if phrase.upper().startswith(begun))


def _parse_statement(text: str, lexemes: list[Lexeme]) -> Statement:
    if not is_ours(lexemes):
        return DuckDBStatement(text[lexemes[0].start : lexemes[-1].stop])
    from krypton.sql.build import build
    from krypton.sql.reading import Reading

    reading = Reading(text)
    reading.feed(lexemes)
    return build(text, reading.finish())
