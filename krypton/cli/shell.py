"""The interactive shell: statements over several lines until `;`, history, completion, and commands that begin with a dot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from krypton.cli.complete import Names, StatementCompleter, StatementLexer
from krypton.cli.render import show_error
from krypton.cli.runner import Runner
from krypton.errors import BindError, KryptonError, unknown
from krypton.sql.lexemes import scan

_PROMPT, _CONTINUED = "krypton> ", "    ...> "
_HELP = """\
Statements end with ; and may take several lines. Tab completes them.

  EXPLAIN OCCLUSION OF 'scan.png' USING MODEL net PATCH 16 STRIDE 4;     a heat map
  EXPLAIN PLAN FOR EXPLAIN OCCLUSION OF ...;                             how it would be computed
  CREATE MODEL net FROM 'torchvision:resnet18';                          a name for a model
  SHOW MODELS | RULES | OPERATORS | KERNELS | SETTINGS | TUNINGS | DEVICES;
  SET krypton.batch = 32;
  SELECT ...;                                                            anything else is DuckDB's

Commands:
"""


class Shell:
    """One shell over one runner. A command is a method of the table `commands` and takes the rest of its line."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._screen = runner.screen
        self.leaving = False
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            ".help": (self._help, "this text"),
            ".models": (lambda _: runner.run_script("SHOW MODELS"), "the registered models"),
            ".quit": (self._quit, "leave; so does Ctrl-D"),
            ".read": (lambda name: runner.run_file(Path(name).expanduser()), "FILE: run the statements of a file"),
            ".tables": (lambda _: runner.run_script("SHOW TABLES"), "the tables of the database"),
            ".timer": (self._timer, "on | off: say how long each statement takes"),
        }

    def run(self, text: str) -> None:
        """Run what was entered; mistakes are shown, and Ctrl-C ends the statement, not the shell."""
        text = text.strip()
        try:
            if text.startswith("."):
                self._command(text)
            elif text:
                self._runner.run_script(text)
            self._screen.flush()
        except KryptonError as error:
            self._screen.flush()
            show_error(self._screen, error)
        except KeyboardInterrupt:
            pass  # the runner has said what was done

    def _command(self, text: str) -> None:
        name, _, argument = text.rstrip(";").partition(" ")
        name = {".exit": ".quit"}.get(name, name)
        if name not in self.commands:
            raise BindError(unknown("command", name, self.commands))
        self.commands[name][0](argument.strip())

    def _help(self, _: str) -> None:
        lines = [f"  {name:<9} {explained}" for name, (_, explained) in self.commands.items()]
        self._screen.write(_HELP + "\n".join(lines))

    def _quit(self, _: str) -> None:
        self.leaving = True

    def _timer(self, wanted: str) -> None:
        if wanted.lower() not in ("on", "off"):
            raise BindError(f'.timer takes on or off, not "{wanted}"')
        self._runner.timer = wanted.lower() == "on"


def run_shell(runner: Runner) -> None:
    """Read and run until Ctrl-D or .quit."""
    shell = Shell(runner)
    session: PromptSession[str] = PromptSession(
        message=_PROMPT,
        prompt_continuation=_CONTINUED,
        multiline=True,
        key_bindings=_bindings(),
        history=_history(),
        completer=make_completer(runner, shell.commands),
        complete_while_typing=False,
        lexer=StatementLexer(),
        auto_suggest=AutoSuggestFromHistory(),
    )
    runner.screen.say("Krypton. Statements end with ; and .help explains the rest.", style="dim")
    while not shell.leaving:
        try:
            text = session.prompt()
        except KeyboardInterrupt:
            continue
        except EOFError:
            break
        shell.run(text)


def make_completer(runner: Runner, commands: Iterable[str]) -> StatementCompleter:
    """Completion with the names that the runner's session knows; nothing is loaded for it."""
    catalog, library = runner.connection.catalog, runner.connection.library

    def labels(model: str) -> Sequence[str]:
        live = library.live(model)
        return (live.labels if live is not None else library.definition(model).labels) or ()

    return StatementCompleter(Names(lambda: [definition.name for definition in catalog.models()], labels), commands)


def is_complete(text: str) -> bool:
    """Whether Enter runs a text: it ends with `;` outside of strings and comments, or is a command, or is empty."""
    lexemes = list(scan(text))
    return not lexemes or text.lstrip().startswith(".") or lexemes[-1].text == ";"


def history_file() -> Path:
    """Where the shell keeps its history: below $XDG_STATE_HOME, or ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    # A relative path is to be ignored, says the XDG specification.
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "krypton" / "history"


def _history() -> History:
    """The history of earlier shells, or an empty one where it cannot be kept."""
    try:
        path = history_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return InMemoryHistory()
    return FileHistory(path)


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    # Not while a search of the history has the focus.
    @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER))
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # the completion is in the text already
        elif is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline()

    return bindings
