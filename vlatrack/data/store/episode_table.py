"""The instructions, actions and states of a dataset's episodes, in memory-mapped Arrow files.

Legend: E episodes, T steps of one, A / N numbers of an action / a state.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlatrack.data.digests import DigestMemory
from vlatrack.data.episodes import Episode, EpisodeSource, SkipsBadEpisodes
from vlatrack.data.store.scattered_rows import ScatteredRows
from vlatrack.data.store.verified_files import open_verified, write_verified
from vlatrack.errors import DataError

SHARD_STEPS = 4096
"""A shard ends with the episode that reaches so many steps."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Positions = Sequence[int] | Ints

_NUMBERS, _EPISODES = "numbers.arrow", "episodes.arrow"
_EPISODE_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("task", pa.int32()),
        ("length", pa.int64()),
        ("shard", pa.int32()),
        ("start", pa.int64()),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """The numbers of consecutive episodes, one after another."""

    actions: Floats  # [steps, A]
    states: Floats | None  # [steps, N]


class EpisodeTable:
    """All episodes of a dataset, by their position; of those that could not be read, why.

    Memory holds some 40 bytes an episode: what grows with the number of steps stays in the files.
    """

    def __init__(
        self,
        *,
        name: str,
        tasks: Sequence[str],
        index: Ints,
        task_of: NDArray[np.int32],
        lengths: Ints,
        shard_of: NDArray[np.int32],
        starts: Ints,
        shards: Sequence[Shard],
        problems: Mapping[int, str] | None = None,
    ) -> None:
        """
        Args:
            name: of the dataset, for messages.
            tasks: the instructions.
            index: [E] of each episode in its dataset.
            task_of: [E] place of each episode's instruction in ``tasks``.
            lengths: [E] steps.
            shard_of, starts: [E] where the numbers of each episode are.
            problems: by position, why an episode cannot be used.
        """
        self.name, self.tasks, self.index, self.task_of, self.lengths = name, tuple(tasks), index, task_of, lengths
        self.shard_of, self.starts, self.shards = shard_of, starts, shards
        self.problems = problems or {}

    def __len__(self) -> int:
        return len(self.lengths)

    def episode(self, position: int) -> Episode:
        """One episode; its arrays lie in the file."""
        shard, task = self.shards[self.shard_of[position]], self.tasks[self.task_of[position]]
        begin = int(self.starts[position])
        steps = slice(begin, begin + int(self.lengths[position]))
        states = None if shard.states is None else shard.states[steps]
        return Episode(int(self.index[position]), task, shard.actions[steps], states)

    @cached_property
    def actions(self) -> ScatteredRows:
        """The actions of each shard."""
        return ScatteredRows([shard.actions for shard in self.shards])

    @cached_property
    def states(self) -> ScatteredRows:
        """The states of each shard; the dataset must have them."""
        return ScatteredRows([shard.states for shard in self.shards if shard.states is not None])

    def noting(self, problems: Mapping[int, str]) -> "EpisodeTable":
        """The same table, with more episodes that cannot be used: by position, why."""
        noted = copy(self)
        noted.problems = {**problems, **self.problems}
        return noted

    def all(self) -> "EpisodeList":
        """All of them, whether they can be used or not."""
        return EpisodeList(self, np.arange(len(self)))

    @classmethod
    def of(cls, episodes: Iterable[Episode], *, name: str = "episodes") -> "EpisodeTable":
        """A table in memory."""
        builder, shards = _Builder(), list[Shard]()
        for episode in episodes:
            shards.extend(builder.add(episode))
        shards.extend(builder.rest())
        return cls(name=name, shards=shards, **builder.columns())


class EpisodeList(Sequence[Episode]):
    """Some episodes of a table, in the order of the dataset: what a split uses."""

    def __init__(self, table: EpisodeTable, positions: Positions) -> None:
        self.table, self.positions = table, np.asarray(positions, np.int64)

    @classmethod
    def of(cls, episodes: Iterable[Episode], *, name: str = "episodes") -> "EpisodeList":
        """A list of its own for episodes in memory."""
        return EpisodeTable.of(episodes, name=name).all()

    @classmethod
    def joined(
        cls, lists: Sequence["EpisodeList"], *, name: str, first_indices: Sequence[int], with_states: bool
    ) -> "EpisodeList":
        """The episodes of several datasets, one after another; the shards stay where they are.

        Args:
            first_indices: of each dataset, the index that its episode 0 gets.
            with_states: false leaves the states out.
        """
        tables = [of_part.table for of_part in lists]
        number_of_task = {task: number for number, task in enumerate(dict.fromkeys(t for x in tables for t in x.tasks))}
        task_of = [np.array([number_of_task[task] for task in t.tasks], np.int32)[t.task_of] for t in tables]
        shards = [shard if with_states else Shard(shard.actions, None) for t in tables for shard in t.shards]
        first_shards = np.cumsum([0, *(len(t.shards) for t in tables)])
        first_positions = np.cumsum([0, *(len(t) for t in tables)])
        table = EpisodeTable(
            name=name,
            tasks=tuple(number_of_task),
            index=np.concatenate([t.index + first for t, first in zip(tables, first_indices, strict=True)]),
            task_of=np.concatenate(task_of),
            lengths=np.concatenate([t.lengths for t in tables]),
            shard_of=np.concatenate([t.shard_of + first for t, first in zip(tables, first_shards, strict=False)]),
            starts=np.concatenate([t.starts for t in tables]),
            shards=shards,
        )
        positions = [x.positions + first for x, first in zip(lists, first_positions, strict=False)]
        return cls(table, np.concatenate(positions))

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, number: int) -> Episode: ...
    @overload
    def __getitem__(self, number: slice) -> "EpisodeList": ...
    def __getitem__(self, number: int | slice) -> "Episode | EpisodeList":
        if isinstance(number, slice):
            return EpisodeList(self.table, self.positions[number])
        return self.table.episode(int(self.positions[number]))

    @cached_property
    def lengths(self) -> Ints:
        """[E] steps of each."""
        return self.table.lengths[self.positions]

    @cached_property
    def indices(self) -> Ints:
        """[E] of each in its dataset."""
        return self.table.index[self.positions]

    @cached_property
    def task_of(self) -> NDArray[np.int32]:
        """[E] the place of each one's instruction in ``table.tasks``."""
        return self.table.task_of[self.positions]

    @cached_property
    def by_shard(self) -> dict[int, Ints]:
        """The positions of the episodes in the table, rising, by shard."""
        positions = np.sort(self.positions)
        shards, first = np.unique(self.table.shard_of[positions], return_index=True)
        return dict(zip(shards.tolist(), np.split(positions, first[1:]), strict=True))

    def task(self, number: int) -> str:
        """The instruction of an episode."""
        return self.table.tasks[self.task_of[number]]

    def gather(self, what: Literal["actions", "states"], numbers: Ints, steps: Ints) -> Floats:
        """Actions [n, m, A] or states [n, m, N] of episodes of the list; the dataset must have them.

        Args:
            numbers: [n] of the episodes.
            steps: [n, m] steps of each.
        """
        table, positions = self.table, self.positions[numbers]
        rows = table.actions if what == "actions" else table.states
        return rows.gather(table.shard_of[positions], table.starts[positions][:, None] + steps)


def open_table(
    folder: Path,
    source: EpisodeSource,
    memory: DigestMemory,
    *,
    skip_bad: bool = False,
    progress: Callable[[int], None] | None = None,
    before_writing: Callable[[], None] = lambda: None,
) -> EpisodeTable:
    """The table of a dataset in ``folder``, read from the dataset if it is not there, or damaged.

    Args:
        folder: for this content, and this choice of ``skip_bad``, alone.
        skip_bad: go on after an episode that cannot be read, if the dataset can, and keep why in the table.
        progress: told the number of episodes that have been read.
        before_writing: raises if nothing is to be kept of what was read.

    Raises:
        DataError: the dataset, or the table, cannot be read, or the table cannot be written.
    """
    found = _stored_table(folder, source, memory)
    if found is None:
        _write_table(folder, source, skip_bad, progress, before_writing)
        found = _stored_table(folder, source, memory)
        if found is None:
            raise DataError(f"{folder}: damaged right after it was written; check the disk")
    return found


def _number_schema(source: EpisodeSource) -> pa.Schema:
    columns = [("actions", pa.list_(pa.float32(), source.action_dim))]
    if source.state_dim:
        columns.append(("states", pa.list_(pa.float32(), source.state_dim)))
    return pa.schema(columns)


def _write_table(
    folder: Path,
    source: EpisodeSource,
    skip_bad: bool,
    progress: Callable[[int], None] | None,
    before_writing: Callable[[], None],
) -> None:
    builder, schema = _Builder(), _number_schema(source)

    def batches() -> Iterator[pa.RecordBatch]:
        for episode in _readable(source, builder, skip_bad):
            _check_shapes(source, episode)
            for shard in builder.add(episode):
                yield _batch_of(shard, schema)
            if progress is not None:
                progress(len(builder))
        for shard in builder.rest():
            yield _batch_of(shard, schema)

    digest = write_verified(folder / _NUMBERS, schema, batches())
    before_writing()
    # Written last, with the digest of the other file, so that the two belong together, and to this folder.
    told = {"tasks": json.dumps(builder.tasks), "numbers": digest, "key": folder.name}
    whole = _EPISODE_SCHEMA.with_metadata(told)
    write_verified(folder / _EPISODES, whole, [builder.batch()])


def _readable(source: EpisodeSource, builder: "_Builder", skip_bad: bool) -> Iterator[Episode]:
    if not isinstance(source, SkipsBadEpisodes):
        return iter(source.episodes())

    def on_bad(index: int, error: DataError) -> None:
        if not skip_bad:
            raise error
        builder.add_problem(index, str(error))

    return source.readable_episodes(on_bad)


def _check_shapes(source: EpisodeSource, episode: Episode) -> None:
    place = f"{source.name}: episode {episode.index}"
    found = 0 if episode.states is None else episode.states.shape[1]
    if episode.actions.shape[1] != source.action_dim or found != source.state_dim:
        raise DataError(
            f"{place} has {episode.actions.shape[1]} action and {found} state numbers, the dataset says "
            f"{source.action_dim} and {source.state_dim}; correct the dataset"
        )


def _batch_of(shard: Shard, schema: pa.Schema) -> pa.RecordBatch:
    arrays = [shard.actions] if shard.states is None else [shard.actions, shard.states]
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(a.ravel()), a.shape[1]) for a in arrays]
    return pa.record_batch(columns, schema=schema)


def _stored_table(folder: Path, source: EpisodeSource, memory: DigestMemory) -> EpisodeTable | None:
    numbers = open_verified(folder / _NUMBERS, _number_schema(source), memory)
    episodes = open_verified(folder / _EPISODES, _EPISODE_SCHEMA, memory)
    if numbers is None or episodes is None:
        return None
    told = episodes.reader.schema.metadata or {}
    if (told.get(b"numbers"), told.get(b"key")) != (numbers.digest.encode(), folder.name.encode()):
        return None  # one of them is of another writer, or both are of another dataset
    rows = episodes.reader.get_batch(0)
    columns = {name: rows[name].to_numpy(zero_copy_only=False) for name in rows.schema.names if name != "problem"}
    problems = rows["problem"]
    bad = np.flatnonzero(problems.is_valid().to_numpy(zero_copy_only=False))
    return EpisodeTable(
        name=source.name,
        tasks=json.loads(told[b"tasks"]),
        index=columns["index"],
        task_of=columns["task"],
        lengths=columns["length"],
        shard_of=columns["shard"],
        starts=columns["start"],
        shards=[_shard_of(numbers.reader.get_batch(n)) for n in range(numbers.reader.num_record_batches)],
        problems={int(position): problems[int(position)].as_py() for position in bad},
    )


def _shard_of(batch: pa.RecordBatch) -> Shard:
    arrays = [column.flatten().to_numpy().reshape(len(column), column.type.list_size) for column in batch.columns]
    return Shard(arrays[0], arrays[1] if len(arrays) == 2 else None)


class _Builder:
    """Episodes that become shards, and what is known of each."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self._number_of_task: dict[str, int] = {}
        self._rows: list[tuple[int, int, int, int, int]] = []  # index, task, length, shard, start
        self._problems: dict[int, str] = {}
        self._open: list[Episode] = []
        self._steps = self._shards = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, episode: Episode) -> Iterator[Shard]:
        """Take an episode; a shard if it fills one."""
        for what, values in (("actions", episode.actions), ("states", episode.states)):
            if values is not None and not np.isfinite(values).all():
                self._problems[len(self._rows)] = f"{what} of episode {episode.index} hold NaN or infinity"
        self._add_row(episode.index, episode.task, episode.length)
        self._open.append(episode)
        self._steps += episode.length
        if self._steps >= SHARD_STEPS:
            yield from self.rest()

    def add_problem(self, index: int, problem: str) -> None:
        """Take an episode that cannot be read."""
        self._problems[len(self._rows)] = problem
        self._add_row(index, "", 0)

    def rest(self) -> Iterator[Shard]:
        """The shard that is not full, if there is one."""
        if not self._open:
            return
        states = [episode.states for episode in self._open if episode.states is not None]
        yield Shard(np.concatenate([e.actions for e in self._open]), np.concatenate(states) if states else None)
        self._open, self._steps, self._shards = [], 0, self._shards + 1

    def columns(self) -> dict[str, Any]:
        """What `EpisodeTable` takes, but its name and shards."""
        rows = np.asarray(self._rows, np.int64).reshape(-1, 5)
        names = ("index", "task_of", "lengths", "shard_of", "starts")
        columns = {name: np.ascontiguousarray(rows[:, place]) for place, name in enumerate(names)}
        small = {name: columns[name].astype(np.int32) for name in ("task_of", "shard_of")}
        return {"tasks": self.tasks, "problems": self._problems, **columns, **small}

    def batch(self) -> pa.RecordBatch:
        """The rows of `_EPISODE_SCHEMA`."""
        columns = self.columns()
        problems = [self._problems.get(position) for position in range(len(self._rows))]
        arrays = [columns[name] for name in ("index", "task_of", "lengths", "shard_of", "starts")]
        return pa.record_batch([*map(pa.array, arrays), pa.array(problems, pa.string())], schema=_EPISODE_SCHEMA)

    def _add_row(self, index: int, task: str, length: int) -> None:
        number = self._number_of_task.setdefault(task, len(self.tasks))
        if number == len(self.tasks):
            self.tasks.append(task)
        self._rows.append((index, number, length, self._shards, self._steps))
