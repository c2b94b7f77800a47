"""The program `vlatrack`: its commands, and how errors are reported."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer

from vlatrack import __version__
from vlatrack.cli.bench import app as bench_app
from vlatrack.cli.compare import compare
from vlatrack.cli.dashboard import app as dashboard_app
from vlatrack.cli.data import app as data_app
from vlatrack.cli.delivery import reap, sync
from vlatrack.cli.doctor import doctor
from vlatrack.cli.evaluate import evaluate, export
from vlatrack.cli.health import health
from vlatrack.cli.hints import correction
from vlatrack.cli.importing import import_logs
from vlatrack.cli.new import new
from vlatrack.cli.report import report
from vlatrack.cli.reproduce import reproduce
from vlatrack.cli.run import run
from vlatrack.cli.serve import serve
from vlatrack.cli.show import show
from vlatrack.cli.spec import schema, validate
from vlatrack.cli.status import status
from vlatrack.cli.submit import submit
from vlatrack.cli.sweep import sweep
from vlatrack.cli.ui import ui
from vlatrack.errors import DISK_IS_FULL, USER_ERROR, SpecError, VlatrackError
from vlatrack.tracking.delivery.log import warn_on_terminal
from vlatrack.tracking.printable import printable
from vlatrack.tracking.privacy import redact

INTERRUPTED = 130

app = typer.Typer(
    name="vlatrack",
    help="Train, evaluate and track vision-language-action models from one YAML.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 something is incomplete or a check failed; 2 what you gave cannot be used; "
    "3 undecided (compare --gate); 129, 130, 143 ended by SIGHUP, Ctrl-C, SIGTERM. See docs/exit-codes.md.",
)
for command in (
    new,
    run,
    submit,
    sweep,
    evaluate,
    compare,
    report,
    reproduce,
    show,
    serve,
    export,
    validate,
    schema,
    ui,
    sync,
    status,
    health,
    reap,
    doctor,
):
    app.command()(command)
app.command("import")(import_logs)
app.add_typer(dashboard_app, name="dashboard")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vlatrack {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate and track vision-language-action models from one YAML."""


def main() -> None:
    """Run the command line. A VlatrackError is printed to stderr without a traceback, and the exit code is 2."""
    with reporting_errors():
        command = typer.main.get_command(app)
        _check_habits(command, sys.argv[1:])
        command()


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Prints what a user can cause as one line, and ends the process with its exit code."""
    warn_on_terminal()
    try:
        yield
    except VlatrackError as error:
        _exit_with(str(error).split("\n"))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            _exit_with([f"{place}{error.strerror}; free some disk space"])
        if error.filename is None or error.strerror is None:
            raise  # not about a file that a user could fix
        _exit_with([f"{os.fsdecode(error.filename)}: {error.strerror}"])
    finally:
        sys.excepthook = _print_traceback  # typer has put its own there


def _check_habits(command: Any, words: list[str]) -> None:
    """Raise SpecError for a command line as other programs have it; the message has ours to copy."""
    if (said := correction(words, dict(_options_of(command)))) is not None:
        raise SpecError(said)


def _options_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, bool]]]:
    """Of each command: its options, and whether they take a value."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from _options_of(inner, (*path, name))
    options = {option: not getattr(p, "is_flag", False) for p in command.params for option in p.opts}
    yield path, options | {"--help": False}


def _exit_with(lines: list[str]) -> NoReturn:
    for line in lines:
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {redact(printable(line))}", err=True)
    sys.exit(USER_ERROR)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, but without secrets: an address with its login may stand in the message of any library."""
    lines = "".join(traceback.format_exception(kind, error, trace)).split("\n")
    sys.stderr.write(redact("\n".join(map(printable, lines))))
