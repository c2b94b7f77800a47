"""Commands of containers, looked at as the command line would."""

from collections.abc import Sequence
from pathlib import Path

import typer
from typer.core import TyperGroup

from vlatrack.cli.main import app
from vlatrack.spec.load import load_spec

ROOT = Path(__file__).parents[2]


def check_command(words: Sequence[str]) -> None:
    """Raise if vlatrack would not take this command; of `run`, the experiment and its changes are looked at as well."""
    name, *arguments = words
    commands = typer.main.get_command(app)
    assert isinstance(commands, TyperGroup)
    with commands.commands[name].make_context(name, list(arguments)) as context:
        assert context.args == []
        if name == "run":
            file, *overrides = context.params["words"]
            load_spec(ROOT / file, overrides)
