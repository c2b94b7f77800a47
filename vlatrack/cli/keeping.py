"""What a command says that is ended early and goes on later."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vlatrack.envs.kept_attempts import KeptAttempts


@contextmanager
def saying_what_is_kept(kept: "KeptAttempts") -> Iterator[None]:
    """Say how a recording that ends early goes on."""
    try:
        yield
    except BaseException:
        if attempts := len(kept):
            typer.echo(f"{attempts} attempts are kept in {kept.folder}; the same command goes on from there", err=True)
        raise
