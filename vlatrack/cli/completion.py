"""What a shell offers after Tab: runs, checkpoints, settings of experiments and their values; loads nothing heavy."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import typer

_MOST_RUNS = 50


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Directories of runs, the newest first."""
    folder = Path(context.params.get("runs") or "runs")
    try:
        found = [path for path in folder.glob("*/*/journal.jsonl") if str(path.parent).startswith(incomplete)]
    except OSError:
        return []
    newest = sorted((path.parent for path in found), key=lambda path: path.name, reverse=True)
    return [str(path) for path in newest[:_MOST_RUNS]]


def complete_resumed(context: typer.Context, incomplete: str) -> list[str]:
    """What `--resume` takes."""
    words = [word for word in ("latest", "auto") if word.startswith(incomplete)]
    return [*words, *complete_run(context, incomplete)]


def complete_checkpoint(incomplete: str) -> list[str]:
    """What `--checkpoint` takes of every run."""
    return [word for word in ("best", "last") if word.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    """Settings of an experiment, with their defaults and the values that they may have; nothing for what looks like a
    file, which the shell completes itself."""
    cut_off = _key_that_bash_cut_off()
    key, equals, value = incomplete.partition("=")
    if cut_off is not None:
        return [text for text in _values_of(cut_off) if text.startswith(incomplete.removeprefix("="))]
    if equals:
        return [f"{key}={text}" for text in _values_of(key) if text.startswith(value)]
    if not incomplete or "/" in incomplete:
        return []
    from vlatrack.spec.structure import known_paths

    keys = dict.fromkeys(path for path in known_paths() if path.startswith(incomplete))
    # A key alone would get a space after it; with one of its values beside it, the shell stops at the sign.
    return [word for path in keys for word in (f"{path}=", *(f"{path}={text}" for text in _values_of(path)[:1]))]


def _key_that_bash_cut_off() -> str | None:
    """bash takes `=` for the end of a word: the key before it, if that is what is to be completed."""
    try:
        words = shlex.split(os.environ.get("COMP_WORDS", ""))
        place = int(os.environ.get("COMP_CWORD", ""))
    except ValueError:  # another shell, or a quote that is still open
        return None
    before = words[:place]
    if place < len(words) and words[place] == "=":
        return words[place - 1]
    return before[-2] if len(before) > 1 and before[-1] == "=" else None


def _values_of(path: str) -> list[str]:
    """The default of a setting, where it is a single value, and what else the model lets it be."""
    from vlatrack.spec.structure import field_at

    field = field_at(None, tuple(path.split(".")))
    if field is None:
        return []
    default = [field.default] if isinstance(field.default, bool | int | float | str | None) else []
    return list(dict.fromkeys(map(_in_yaml, (*default, *_literals(field.annotation)))))


def _in_yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _literals(annotation: object) -> Iterator[object]:
    if annotation is bool:
        yield from (True, False)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from _literals(inner)
