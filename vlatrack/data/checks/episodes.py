"""What is wrong with the episodes of one split: too short, twice there, no instruction, NaN."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.finding import Finding, Severity, episodes_place, plural, some
from vlatrack.data.episodes import Episode

_PLACEHOLDER = re.compile(
    r"(task|episode|instruction|demo|prompt|test)?[\s_:#.-]*\d*"
    r"|none|null|nan|n/?a|to ?do|tbd|default|unknown|dummy|placeholder|instruction|(no|your) (task|instruction)",
    re.IGNORECASE,
)
"""An instruction that is none: empty, `task_0`, `n/a`."""


@dataclass(frozen=True)
class EpisodeRecord:
    """What the checks keep of an episode, about 200 bytes."""

    index: int  # position in its dataset
    task: str
    length: int
    digest: bytes  # of its actions and states
    finite: bool

    @classmethod
    def of(cls, episode: Episode) -> Self:
        arrays = [episode.actions, *(() if episode.states is None else (episode.states,))]
        total = hashlib.sha256()  # processors have it built in
        for array in arrays:
            total.update(repr(array.shape).encode())
            total.update(np.ascontiguousarray(array).data)
        return cls(episode.index, episode.task, episode.length, total.digest()[:16], all(map(_is_finite, arrays)))


@dataclass(frozen=True)
class Needs:
    """What a training needs of an episode."""

    horizon: int  # steps of a chunk
    kinds: tuple[str, ...]  # of samples: vla, world_model

    @property
    def shortest(self) -> int:
        """Steps without which an episode has no sample at all."""
        return min(self.horizon if kind == "vla" else 2 for kind in self.kinds)


def records_of(episodes: Iterable[Episode]) -> list[EpisodeRecord]:
    """Of each episode."""
    return [EpisodeRecord.of(episode) for episode in episodes]


def check_episodes(where: str, records: Sequence[EpisodeRecord], needs: Needs | None = None) -> Iterator[Finding]:
    """All checks of one split or dataset.

    Args:
        where: its name, for messages.
        needs: those of the experiment; None: there is none.
    """
    yield from _check_samples(where, records, needs)
    if bad := [record.index for record in records if not record.finite]:
        what = f"{plural(len(bad), 'episode')} with NaN or infinite values"
        yield _of_episodes("error", "not finite", where, bad, what, "leave them out")
    yield from _check_duplicates(where, records)
    yield from _check_instructions(where, records)


def _check_samples(where: str, records: Sequence[EpisodeRecord], needs: Needs | None) -> Iterator[Finding]:
    shortest = 1 if needs is None else needs.shortest
    short = [record.index for record in records if record.length < shortest]
    if len(short) == len(records):
        remedy = "choose other tasks or another part" if not records else "lower action_head.time_horizon"
        what = "no episode" if not records else f"no sample: no episode has {plural(shortest, 'step')}"
        yield Finding("error", "no samples", where, what, remedy, 0)
    elif short:
        what = f"{plural(len(short), 'episode')} of {len(records):,} shorter than {plural(shortest, 'step')}"
        why = "nothing is learned from them; lower action_head.time_horizon, or leave them out"
        yield _of_episodes("warning", "too short", where, short, what, why)


def _check_duplicates(where: str, records: Sequence[EpisodeRecord]) -> Iterator[Finding]:
    first: dict[bytes, int] = {}
    again = [
        (record.index, first[record.digest])
        for record in records
        if first.setdefault(record.digest, record.index) != record.index
    ]
    if again:
        what = f"{plural(len(again), 'episode')} with the actions and states of an earlier one"
        remedy = f"remove them, unless their images differ ({some([f'{one} as {other}' for one, other in again])})"
        yield Finding("warning", "duplicates", where, what, remedy, len(again))


def _check_instructions(where: str, records: Sequence[EpisodeRecord]) -> Iterator[Finding]:
    without = [record for record in records if is_placeholder(record.task)]
    if without:
        tasks = some([repr(task) for task in dict.fromkeys(record.task for record in without)])
        what = f"{plural(len(without), 'episode')} without an instruction ({tasks})"
        remedy = "write the instruction into the dataset: the policy reads it in every prompt"
        yield _of_episodes("warning", "instruction", where, [record.index for record in without], what, remedy)
    spelled: dict[str, set[str]] = {}
    for record in records:
        spelled.setdefault(" ".join(record.task.lower().split()).rstrip("."), set()).add(record.task)
    if several := [sorted(tasks) for tasks in spelled.values() if len(tasks) > 1]:
        shown = some([" / ".join(map(repr, tasks)) for tasks in several])
        what = f"{plural(len(several), 'task')} in more than one spelling ({shown})"
        remedy = "spell it in one way: each is a task of its own, also when episodes are held out"
        yield Finding("warning", "spelling", where, what, remedy, len(several))


def is_placeholder(task: str) -> bool:
    """Whether an instruction says nothing."""
    return _PLACEHOLDER.fullmatch(task.strip()) is not None


def _of_episodes(
    severity: Severity, check: str, where: str, indexes: Sequence[int], message: str, remedy: str
) -> Finding:
    return Finding(severity, check, episodes_place(where, indexes), message, remedy, len(indexes))


def _is_finite(array: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(array).all())
