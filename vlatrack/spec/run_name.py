"""What a run is called: what its command line changed, then when it began."""

import shlex
from collections.abc import Sequence
from datetime import datetime

from vlatrack.spec.identity import NOT_DECIDING, matches

SEPARATOR = " · "
MOST_LETTERS = 100
"""Of the changes in a name: W&B takes 128 letters with the time."""
LONGEST_VALUE = 32
_SOURCES = ("data.*.path", "init_from", "backbone.checkpoint", "tokenizer.checkpoint")
_SAYS_NOTHING = tuple(pattern for pattern in NOT_DECIDING if pattern not in _SOURCES)
"""Settings of where and how fast a run runs, which tell no two results apart."""


def run_name(experiment: str, overrides: Sequence[str], started: datetime) -> str:
    """``loss_ct_weights=1 · seed=2 · 2026-01-31 12:00:00``; without changes the experiment stands before the time.

    Of each path the last segment is shown, and as many before it as it takes to tell it from the others. What only says
    where or how fast a run runs is left out, and so are the last changes of very many.

    Args:
        overrides: ``path=value`` texts that ``load_spec`` has taken.
    """
    values = {path: value for path, value in changes(overrides).items() if not matches(path, _SAYS_NOTHING)}
    names = short_paths(list(values))
    parts = [f"{names[path]}={_shortened(value)}" for path, value in values.items()]
    shown, letters = 0, 0
    while shown < len(parts) and letters + len(parts[shown]) <= MOST_LETTERS:
        letters += len(parts[shown]) + len(SEPARATOR)
        shown += 1
    left = [f"+{len(parts) - shown}"] if shown < len(parts) else []
    return SEPARATOR.join([*(parts[:shown] or [experiment]), *left, f"{started:%Y-%m-%d %H:%M:%S}"])


def changes(overrides: Sequence[str]) -> dict[str, str]:
    """The values by path, as they are written on the command line; of several for a path the last one counts."""
    parts = [override.partition("=") for override in overrides]
    return {path.strip(): " ".join(value.split()) for path, _, value in parts}


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """For each dotted path its shortest end that no other of them has: ``optim.lr`` is ``lr``."""
    return {path: _shortest_end(path, [other for other in paths if other != path]) for path in paths}


def overrides_text(overrides: Sequence[str], earlier: str = "") -> str:
    """The overrides in one line that a shell reads back, behind those of an earlier part of the run."""
    new = [word for word in map(shlex.quote, overrides) if f" {word} " not in f" {earlier} "]
    return " ".join([*([earlier] if earlier else []), *new])


def _shortest_end(path: str, others: Sequence[str]) -> str:
    segments = path.split(".")
    ends = (".".join(segments[-count:]) for count in range(1, len(segments) + 1))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), path)


def _shortened(value: str) -> str:
    """Of a long path the end is told, of other texts the beginning."""
    if len(value) <= LONGEST_VALUE:
        return value
    return f"…{value[1 - LONGEST_VALUE :]}" if "/" in value else f"{value[: LONGEST_VALUE - 1]}…"
