"""How far the training of a run has come, and how fast, from the end of its journal: as fast for one of any length."""

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vlatrack.metrics.names import SPLITS
from vlatrack.tracking.journal.history import REWOUND, last_start, rewound_to
from vlatrack.tracking.journal.records import JournalDamage, Kind, Record, decode_or_note, last_record

LOSS_NAMES = tuple(f"{split}_{loss}" for split in SPLITS for loss in ("closs", "loss_ct", "z_loss", "loss"))
"""The documented losses of each split."""
PACE_RECORDS = 8
"""The pace is that of so many records of training metrics."""
JOB = "vlatrack.job"
"""The tag with the job of a scheduler that trains the run, such as ``slurm 4711``."""
_FURTHEST_LOOK = 200
"""After so many lines that name a metric and do not count, it is taken for missing: somebody has made them."""
_LAST_BYTES = 64 << 20
"""Of a longer journal the end alone is looked at, which holds thousands of records."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training had come when its journal was read."""

    name: str | None = None
    """what people call the run; None before its start is written"""
    job: str | None = None
    """the job of a scheduler that has trained its newest part, such as ``slurm 4711``"""
    started_ms: int | None = None
    """Unix milliseconds of its newest part: a resume begins another"""
    last_ms: int | None = None
    """of the last record of any kind"""
    step: int | None = None
    total_steps: int | None = None
    """None while that cannot be told, before the first training metrics"""
    epoch: float | None = None
    """epochs that are done, 1.5 in the middle of the second"""
    epochs: int | None = None
    steps_per_s: float | None = None
    """lately, pauses for evaluations and checkpoints included"""
    losses: Mapping[str, float] = field(default_factory=dict)
    """the last value of each documented loss by its full name, such as ``val_ind_closs``"""

    @property
    def left_s(self) -> float | None:
        """Seconds to the last step at this pace."""
        if self.step is None or self.total_steps is None or not self.steps_per_s:
            return None
        return max(0, self.total_steps - self.step) / self.steps_per_s

    @classmethod
    def of(cls, journal: Path, *, damage: JournalDamage) -> Self:
        """Read it, without damaged lines; OSError if the journal cannot be read."""
        start, last = last_start(journal, damage=damage), last_record(journal, damage=damage)
        if last is None:
            return cls()
        with journal.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            lines = _Lines(content, damage)
            trained = list(lines.latest(b'"train_closs":', PACE_RECORDS))
            marks = (f'"{split}_closs":'.encode() for split in SPLITS[1:])
            evaluated = [record for mark in marks for record in lines.latest(mark, 1)]
        return cls.from_records(start, trained, evaluated, last_ms=last.t_ms)

    @classmethod
    def from_records(
        cls, start: Record | None, trained: Sequence[Record], evaluated: Sequence[Record], *, last_ms: int
    ) -> Self:
        """From the last start of the run (None if it is damaged), its last `PACE_RECORDS` records of training metrics,
        newest first, and the last record of each validation split; ``last_ms`` is the time of the last record of any
        kind."""
        begun: Mapping[str, Any] = {"name": None, "params": {}, "tags": {}} if start is None else start.data
        params = begun["params"]
        epochs, max_steps = (_count(params.get(name)) for name in ("train.epochs", "train.max_steps"))
        newest = trained[0] if trained else None
        epoch = None if newest is None else newest.data.get("epoch")
        losses = {} if newest is None else _losses(newest)
        for record in evaluated:
            losses |= _losses(record)
        return cls(
            name=begun["name"],
            job=begun["tags"].get(JOB),
            started_ms=None if start is None else start.t_ms,
            last_ms=last_ms,
            step=None if newest is None else newest.step,
            total_steps=_total_steps(newest, epochs, max_steps),
            epoch=epoch,
            epochs=epochs,
            steps_per_s=_pace([record for record in trained if start is None or record.seq > start.seq]),
            losses=losses,
        )


class _Lines:
    """The lines of a journal that count, found by what stands in them."""

    def __init__(self, content: mmap.mmap, damage: JournalDamage) -> None:
        self._content, self._first, self._damage = content, max(0, len(content) - _LAST_BYTES), damage
        self._rewinds = [
            (record.seq, first)
            for record in self._backwards(f'"name":"{REWOUND}"'.encode())
            if (first := rewound_to(record)) is not None
        ]

    def latest(self, mark: bytes, limit: int) -> Iterator[Record]:
        """The last records of metrics that have this mark, newest first, but those of steps that were rewound later."""
        found = 0
        for looked, record in enumerate(self._backwards(mark)):
            if found == limit or looked > _FURTHEST_LOOK:
                return
            if record.kind == Kind.METRICS and record.step is not None and not self._is_rewound(record):
                found += 1
                yield record

    def _is_rewound(self, record: Record) -> bool:
        return any(record.seq < seq and (record.step or 0) >= first for seq, first in self._rewinds)

    def _backwards(self, mark: bytes) -> Iterator[Record]:
        end = self._content.rfind(b"\n") + 1
        while (found := self._content.rfind(mark, self._first, end)) >= 0:
            begin = self._content.rfind(b"\n", 0, found) + 1
            record = decode_or_note(self._content[begin : self._content.find(b"\n", found)], begin, self._damage)
            if record is not None:
                yield record
            end = begin


def _losses(record: Record) -> dict[str, float]:
    return {name: record.data[name] for name in LOSS_NAMES if name in record.data}


def _total_steps(newest: Record | None, epochs: int | None, max_steps: int | None) -> int | None:
    """From the settings, and the steps that an epoch has had so far."""
    epoch = None if newest is None else newest.data.get("epoch")
    if newest is None or newest.step is None or not epoch or epochs is None or not epoch > 0:
        return max_steps
    steps = round(epochs * newest.step / epoch)
    return steps if max_steps is None else min(steps, max_steps)


def _pace(newest_first: list[Record]) -> float | None:
    if len(newest_first) < 2:
        return None
    new, old = newest_first[0], newest_first[-1]
    seconds, steps = (new.t_ms - old.t_ms) / 1000, (new.step or 0) - (old.step or 0)
    return steps / seconds if seconds > 0 and steps > 0 else None


def _count(value: Any) -> int | None:
    return int(value) if re.fullmatch(r"[0-9]{1,9}", str(value)) else None
