"""Feeding the lexemes of one statement to the LALR machine of grammar.lark, and saying what could come next.

Between lexemes.py, which cuts the text, and build.py, which makes nodes of the tree. The machine is driven by hand
because its state decides what a lexeme is: a word is a keyword only where that keyword may stand, and an opening
parenthesis begins a subquery only where an image may.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from lark import Lark, Token, Tree, UnexpectedToken
from lark.lexer import Lexer

from krypton.cache import cache_folder
from krypton.errors import ParserError
from krypton.sql.lexemes import Lexeme, closing, keyword_form, word
from krypton.sql.mistakes import expect, mistake, quote, suggest

_END = "$END"
_Machine: TypeAlias = Any  # Lark's InteractiveParser, whose methods have no annotations

# The statement that a keyword announces, as messages call it. Those with clauses say "unknown clause".
_STATEMENTS = {
    "EXPLAIN": "EXPLAIN",
    "OCCLUSION": "EXPLAIN OCCLUSION",
    "PLAN": "EXPLAIN PLAN FOR",
    "ESTIMATE": "ESTIMATE",
    "CREATE": "CREATE MODEL",
    "DROP": "DROP MODEL",
    "DESCRIBE": "DESCRIBE MODEL",
    "TUNE": "TUNE MODEL",
    "CALIBRATE": "CALIBRATE",
    "SHOW": "SHOW",
    "SET": "SET krypton",
    "RESET": "RESET krypton",
}
_WITH_CLAUSES = ("EXPLAIN OCCLUSION", "CREATE MODEL", "TUNE MODEL", "CALIBRATE")

# Terminals that are not keywords, as messages call them.
_THINGS = {
    "NAME": "a name",
    "STRING": "a string in single quotes",
    "PARAM": "$parameter",
    "SUBQUERY": "(SELECT ...)",
    "INTEGER": "a whole number",
    "DECIMAL": "a number",
    "SIZE": "a size such as 16x24",
    "SHAPE": "a shape such as 3x224x224",
}
_SYMBOLS = {"(": "LPAR", ")": "RPAR", ",": "COMMA", ".": "_DOT", "=": "EQUAL", "=>": "_ARROW"}
_SPELLINGS = {"KRYPTON": "krypton."}
_SUBQUERY_STARTS = ("SELECT", "WITH", "FROM", "VALUES", "TABLE", "PIVOT", "UNPIVOT")
_UNCLOSED = {
    "OPEN_STRING": ("string", "A string ends with a single quote; write '' for a quote inside it."),
    "OPEN_QUOTED": ("name", 'A quoted name ends with a double quote; write "" for a quote inside it.'),
    "OPEN_COMMENT": ("comment", "A comment ends with */, and comments inside it count."),
}


class _NoLexer(Lexer):
    """Lark wants one; lexemes.py does the work."""

    def __init__(self, lexer_conf: Any) -> None:
        pass

    def lex(self, *_: Any) -> Any:
        return iter(())


@functools.cache
def machine() -> Lark:
    """The LALR machine of grammar.lark, built at the first statement. Its tables are kept: they take longer than most plans."""
    folder, kept = cache_folder(), True
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        kept = False
    cache = str(folder / "grammar.tables") if kept else False  # Lark makes them anew when grammar or Lark have changed
    return Lark.open("grammar.lark", rel_to=__file__, parser="lalr", lexer=_NoLexer, propagate_positions=True, cache=cache)


@functools.cache
def keyword_terminals() -> frozenset[str]:
    """All keywords of the grammar: terminals that spell a word."""
    return frozenset(t.name for t in machine().terminals if t.pattern.value == t.name)


class Expected(NamedTuple):
    """What may follow: keywords (clauses with all their words), other things, and whether the statement may end."""

    keywords: list[str]
    things: list[str]
    end: bool


@dataclass
class Reading:
    """The machine part way through one statement; `text` is all there is, for messages."""

    text: str
    _statement: str = ""
    _machine: _Machine = field(default_factory=lambda: machine().parse_interactive())
    _clauses: set[str] = field(default_factory=set)
    _last: Lexeme | None = None

    def feed(self, lexemes: list[Lexeme]) -> None:
        """Take lexemes in; raises ParserError at the first that does not fit."""
        if lexemes and lexemes[-1].kind in _UNCLOSED:
            kind, advice = _UNCLOSED[lexemes[-1].kind]
            raise mistake(self.text, lexemes[-1].start, lexemes[-1].start + 1, f"unterminated {kind}", advice)
        index = 0
        while index < len(lexemes):
            lexeme = lexemes[index]
            if lexeme.text == "(" and "SUBQUERY" in self._machine.choices():
                index, lexeme = self._subquery(lexemes, index)
            self._feed_one(lexeme)
            index += 1

    def finish(self) -> Tree[Token]:
        """The tree of the whole statement."""
        stop = self._last.stop if self._last else 0
        try:
            tree = self._machine.feed_eof()
        except UnexpectedToken:
            expected = self.expected()
            advice = expect(expected.keywords + expected.things)
            raise mistake(self.text, stop, stop, "unexpected end of statement", advice) from None
        assert isinstance(tree, Tree)
        return tree

    def expected(self) -> Expected:
        """What may follow here; clauses that are already written are left out."""
        probe = _probe(self._machine)
        accepted = probe.accepts()
        words = accepted & keyword_terminals()
        if _END in accepted:
            words -= self._clauses
        things = [thing for terminal, thing in _THINGS.items() if terminal in accepted]
        things += [f'"{symbol}"' for symbol, terminal in _SYMBOLS.items() if terminal in accepted]
        if "INTEGER" in accepted and "DECIMAL" in accepted:
            things.remove("a whole number")
        return Expected(sorted(_phrase(probe, keyword) for keyword in words), things, _END in accepted)

    def _feed_one(self, lexeme: Lexeme) -> None:
        choices = self._machine.choices()
        terminal = self._terminal(lexeme, choices)
        if terminal not in choices:
            raise self._unexpected(lexeme)
        # Wherever the statement could end, a keyword begins a clause. (LALR states share lookaheads, so FROM, OVER,
        # SECONDS and EXISTS are noted too: they stand once in a statement anyway.)
        if _END in choices and terminal in keyword_terminals():
            if terminal in self._clauses:
                clause = _phrase(_probe(self._machine), terminal)
                message = f"clause {clause} is written twice in {self._statement}"
                raise mistake(self.text, lexeme.start, lexeme.stop, message, "Each clause may be written once.")
            self._clauses.add(terminal)
        try:
            self._machine.feed_token(Token(terminal, lexeme.text, start_pos=lexeme.start, end_pos=lexeme.stop))
        except UnexpectedToken:
            raise self._unexpected(lexeme) from None
        self._statement = _STATEMENTS.get(terminal, self._statement)
        self._last = lexeme

    def _terminal(self, lexeme: Lexeme, choices: dict[str, Any]) -> str:
        if lexeme.kind == "WORD":
            keyword = keyword_form(lexeme)
            return keyword if keyword in choices and keyword in keyword_terminals() else "NAME"
        if lexeme.kind == "SYMBOL":
            return _SYMBOLS.get(lexeme.text, "")
        if lexeme.kind == "QUOTED" and lexeme.text == '""':
            raise mistake(self.text, lexeme.start, lexeme.stop, "a name cannot be empty")
        if lexeme.kind in ("INTEGER", "DECIMAL", "SIZE", "SHAPE") and not _fits(lexeme):
            raise mistake(self.text, lexeme.start, lexeme.stop, "number too large", "Numbers have 64 bits.")
        return lexeme.kind

    def _subquery(self, lexemes: list[Lexeme], index: int) -> tuple[int, Lexeme]:
        """The subquery whose parenthesis opens at `index`, as one lexeme, and the index where it closes."""
        start, stop = lexemes[index].start, closing(lexemes, index)
        if stop is None:
            raise mistake(self.text, start, start + 1, 'unterminated query: this "(" is never closed')
        first = lexemes[index + 1]
        if first.text != "(" and word(lexemes, index + 1) not in _SUBQUERY_STARTS:
            message = f"unexpected {quote(first.text)}: a query in parentheses begins with SELECT"
            raise mistake(self.text, first.start, first.stop, message, suggest(first.text, _SUBQUERY_STARTS))
        return stop, Lexeme("SUBQUERY", self.text[start : lexemes[stop].stop], start)

    def _unexpected(self, lexeme: Lexeme) -> ParserError:
        keywords, things, end = self.expected()
        cited = quote(lexeme.text)
        if self._last is None:
            message = f"unknown statement {cited}"
        elif end and lexeme.kind == "WORD" and self._statement in _WITH_CLAUSES:
            message = f"unknown clause {cited} in {self._statement}"
        else:
            last = self._last
            before = keyword_form(last) if keyword_form(last) in keyword_terminals() else quote(last.text)
            message = f"unexpected {cited} after {before}"
        near = suggest(lexeme.text, keywords) if len(keywords + things) > 1 else ""
        if lexeme.kind == "QUOTED" and "a string in single quotes" in things:
            near = "Double quotes are for names, single quotes for strings."
        return mistake(self.text, lexeme.start, lexeme.stop, message, f"{near} {expect(keywords + things)}".strip())


def _probe(machine: _Machine) -> _Machine:
    """A copy to try continuations on: it goes through the states without making trees."""
    probe = machine.copy(deepcopy_values=False)
    probe.parser_state.parse_conf = copy.copy(probe.parser_state.parse_conf)
    probe.parser_state.parse_conf.callbacks = {}
    return probe


def _phrase(probe: _Machine, keyword: str) -> str:
    """A keyword with the keywords that must follow it: FOR in a query is FOR CLASS."""
    words = [keyword]
    after = probe.copy(deepcopy_values=False)
    while True:
        after.feed_token(Token(words[-1], ""))
        following = after.accepts()
        if len(following) != 1 or not following <= keyword_terminals() - {"EXPLAIN"}:
            return " ".join(_SPELLINGS.get(word, word) for word in words)
        words += following


def _fits(lexeme: Lexeme) -> bool:
    if lexeme.kind == "DECIMAL":
        return math.isfinite(float(lexeme.text))
    parts = lexeme.text.upper().replace("×", "X").split("X")
    return all(len(part.strip()) <= 20 and abs(int(part)) < 2**63 for part in parts)
