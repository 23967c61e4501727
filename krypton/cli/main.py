"""The command `krypton`: statements from its arguments, a file, standard input or a shell.

Exit status: 0; 1 for a mistake of the user, the message on standard error; 2 for a bug of Krypton, with a traceback; 130
when interrupted, after saying what was done; 141 when nobody reads the output any more, as if killed by SIGPIPE.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from krypton.cli.screen import Screen, abandon_output
from krypton.errors import ExecutionError, KryptonError, did_you_mean

_USER_ERROR, _BUG, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 130, 141
_WRONG_USAGE = 2  # Typer's own status, which is ours for bugs


class _FileOrCommand(TyperGroup):
    """`krypton demo` is a command; any other word is the script for the hidden command `run`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return super().resolve_command(ctx, args if args[0] in self.commands else ["run", *args])


app = typer.Typer(
    cls=_FileOrCommand,
    invoke_without_command=True,
    subcommand_metavar="[FILE.sql | demo]",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Statements = Annotated[
    list[str] | None, typer.Option("--command", "-c", metavar="TEXT", help="Run these statements and leave. May be repeated.")
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database", "-d", metavar="FILE", help="Keep models, settings and results in this file; without it, in memory."
    ),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or the process's own, and return the exit status."""
    try:
        app(arguments, prog_name="krypton")
    except SystemExit as exit:
        return _USER_ERROR if exit.code == _WRONG_USAGE else int(exit.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception:
        traceback.print_exc()
        print("This is a bug of Krypton; please report it with the lines above.", file=sys.stderr)
        return _BUG
    return 0


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"krypton {version('krypton')}")
        raise typer.Exit


@app.callback()
def krypton(
    context: typer.Context,
    command: Statements = None,
    database: Database = None,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")] = False,
) -> None:
    """Fast, exact occlusion explanations of CNNs, as queries.

    Runs the statements of -c, of a file, or of standard input; on a terminal without any of them, opens a shell.
    """
    context.obj = {"command": command, "database": database}
    if context.invoked_subcommand is None:
        _execute(None, command or [], database)


@app.command(hidden=True)
def run(context: typer.Context, file: Path, command: Statements = None, database: Database = None) -> None:
    """Run the statements of a file; `-` is standard input."""
    _execute(file, (context.obj["command"] or []) + (command or []), database or context.obj["database"])


@app.command()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the picture goes.")] = Path("out"),
) -> None:
    """Explain the shipped model's answer for the shipped image, and time it against naive occlusion."""
    screen = Screen.of_process()
    with _statuses(screen):
        from krypton.cli.demo import run_demo

        run_demo(screen, out)


def _execute(file: Path | None, texts: list[str], database: str | None) -> None:
    if file is not None and texts:
        raise typer.BadParameter("give statements with -c or a file, not both")
    screen = Screen.of_process()
    with _statuses(screen):
        scripts = texts or _scripts(file)
        from krypton import connect
        from krypton.cli.runner import Runner

        with connect(database) if database else connect() as connection:
            runner = Runner(connection, screen)
            if scripts is None:
                from krypton.cli.shell import run_shell

                run_shell(runner)
            else:
                for script in scripts:
                    runner.run_script(script)


def _scripts(file: Path | None) -> list[str] | None:
    """The text of a file or of standard input; None for a shell."""
    from krypton.cli.runner import read_script

    if file is None and sys.stdin.isatty():
        return None
    if file is None or str(file) == "-":
        try:
            return [sys.stdin.read()]
        except UnicodeDecodeError:
            raise ExecutionError("standard input is not text in UTF-8") from None
    if not file.exists() and not file.suffix:
        raise ExecutionError(f'there is no file "{file}" and no command of that name.{did_you_mean(str(file), ["demo"])}')
    return [read_script(file)]


@contextmanager
def _statuses(screen: Screen) -> Iterator[None]:
    """Turn what may go wrong into a message and the exit status."""
    try:
        yield
        screen.flush()
    except KryptonError as error:
        from krypton.cli.render import show_error

        show_error(screen, error)
        raise typer.Exit(_USER_ERROR) from None
    except KeyboardInterrupt as interrupt:
        if type(interrupt) is KeyboardInterrupt:  # before the runner, which says what was done
            screen.say(str(interrupt) or "interrupted", style="yellow")
        raise typer.Exit(_INTERRUPTED) from None
    except BrokenPipeError:
        abandon_output()
        raise typer.Exit(_BROKEN_PIPE) from None
    except OSError as error:
        if error.filename is not None:
            raise
        abandon_output()
        screen.say(f"ExecutionError: the output cannot be written: {error.strerror}", style="red")
        raise typer.Exit(_USER_ERROR) from None
