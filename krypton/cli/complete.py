"""What may come next in the shell, and in which colour it is written: both from the language's own scanner and grammar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.formatted_text.utils import split_lines
from prompt_toolkit.lexers import Lexer

from krypton.errors import KryptonError
from krypton.settings import SETTINGS
from krypton.sql import expected_after, keywords
from krypton.sql.lexemes import Lexeme, scan, split, word

# DuckDB's statements have no grammar here; these words are coloured and no more.
_SQL_WORDS = frozenset(
    """
    ALTER AND AS ASC ATTACH BY CASE COPY CREATE DELETE DESC DESCRIBE DISTINCT DROP ELSE END EXISTS FROM GROUP HAVING IN INSERT
    INTO IS JOIN LEFT LIKE LIMIT NOT NULL ON OR ORDER SELECT SET SHOW TABLE TABLES THEN TO UPDATE VALUES VIEW WHEN WHERE WITH
    """.split()  # noqa: SIM905
)
_STYLES = {
    "STRING": "ansigreen",
    "OPEN_STRING": "ansigreen",
    "FOREIGN": "ansigreen",
    "PARAM": "ansimagenta",
    "INTEGER": "ansicyan",
    "DECIMAL": "ansicyan",
    "SIZE": "ansicyan",
    "SHAPE": "ansicyan",
    "OPEN_COMMENT": "ansibrightblack",
}


class Names:
    """The names that a session knows, asked for when they are needed: the shell hands over the functions."""

    def __init__(self, models: Callable[[], Iterable[str]], labels: Callable[[str], Iterable[str]]) -> None:
        self._models = models
        self._labels = labels

    def models(self) -> list[str]:
        """The registered models."""
        try:
            return sorted(self._models())
        except KryptonError:
            return []

    def labels(self, model: str) -> list[str]:
        """The labels of a model's classes, in order."""
        try:
            return list(self._labels(model))
        except KryptonError:
            return []


class StatementCompleter(Completer):
    """Keywords from the grammar; names of models, settings and labels; files within quotes; the shell's commands."""

    def __init__(self, names: Names, commands: Iterable[str]) -> None:
        self._names = names
        self._commands = sorted(commands)
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if text.lstrip().startswith("."):
            yield from self._command(text.lstrip(), complete_event)
            return
        lexemes = split(text)[-1]
        if lexemes and lexemes[-1].kind == "OPEN_STRING":
            yield from self._string(lexemes, complete_event)
            return
        begun = lexemes.pop().text if lexemes and lexemes[-1].kind == "WORD" and lexemes[-1].stop == len(text) else ""
        names = self._names_after(lexemes)
        for name in [*names, *(phrase for phrase in expected_after(text) if phrase not in names)]:
            if name.lower().startswith(begun.lower()):
                yield Completion(name, start_position=-len(begun))

    def _command(self, text: str, event: CompleteEvent) -> Iterator[Completion]:
        command, space, argument = text.partition(" ")
        if space:
            if command == ".read":
                yield from self._files.get_completions(Document(argument.lstrip()), event)
            return
        for known in self._commands:
            if known.startswith(command):
                yield Completion(known, start_position=-len(command))

    def _string(self, lexemes: list[Lexeme], event: CompleteEvent) -> Iterator[Completion]:
        written = lexemes[-1].text[1:]
        if word(lexemes[-2:], 0) == "CLASS":
            for label in self._names.labels(_model(lexemes)):
                if label.lower().startswith(written.replace("''", "'").lower()):
                    yield Completion(label.replace("'", "''") + "'", start_position=-len(written), display=label)
            return
        yield from self._files.get_completions(Document(written), event)

    def _names_after(self, lexemes: list[Lexeme]) -> list[str]:
        """The names that may stand after these lexemes; keywords are the grammar's."""
        last = word(lexemes[-1:], 0)
        if last == "MODEL" and word(lexemes, 0) != "CREATE":
            return self._names.models()
        if last == "CLASS":
            return ["'" + label.replace("'", "''") + "'" for label in self._names.labels(_model(lexemes))]
        if len(lexemes) == 3 and word(lexemes, 0) in ("SET", "RESET") and lexemes[2].text == ".":
            return sorted(SETTINGS)
        return []


class StatementLexer(Lexer):
    """Colours for keywords, strings, numbers, parameters and comments."""

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        lines = list(split_lines(list(_coloured(document.text))))
        return lambda number: lines[number] if number < len(lines) else []


def _coloured(text: str) -> Iterator[tuple[str, str]]:
    known = _SQL_WORDS.union(keywords())
    position = 0
    for lexeme in scan(text):
        # The scanner passes over space and comments.
        yield "ansibrightblack", text[position : lexeme.start]
        keyword = lexeme.kind == "WORD" and lexeme.text.upper() in known
        yield "bold ansiblue" if keyword else _STYLES.get(lexeme.kind, ""), lexeme.text
        position = lexeme.stop
    yield "ansibrightblack", text[position:]


def _model(lexemes: list[Lexeme]) -> str:
    """The name after USING MODEL, or an empty string."""
    for index in range(len(lexemes) - 2):
        if (word(lexemes, index), word(lexemes, index + 1)) == ("USING", "MODEL"):
            return lexemes[index + 2].text.strip('"')
    return ""
