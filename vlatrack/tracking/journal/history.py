"""What a run's journal tells: its metrics, its state, how much it holds, and what a resume goes back over."""

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vlatrack.errors import TrackerError
from vlatrack.metrics.schema import EVALUATE, SIMULATION
from vlatrack.tracking.backends.base import RunStart, Scalar
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.journal.records import (
    JournalDamage,
    JournalReader,
    Kind,
    Record,
    finish_record,
    last_record,
    read_records,
    records_backwards,
)
from vlatrack.tracking.lock import copied_from
from vlatrack.tracking.run_files import RunFiles

REWOUND = "rewound"
"""Name of the event that marks in the journal which steps a resume goes back over."""

_REWOUND_TAG = "vlatrack.rewound."
_START_MARK = b'"kind":"start"'
_LONG_FROM_BYTES = 8 << 20


@dataclass(frozen=True)
class RunStatus:
    """State of a run: RUNNING, FINISHED, FAILED or KILLED; `last_step` is its last logged training step.

    A run that has ended may still be written for a while: figures and other files are logged after its end.
    """

    status: str
    reason: str | None
    last_step: int | None


def metric_history(journal_path: Path, *, damage: JournalDamage | None = None) -> dict[str, list[tuple[int, float]]]:
    """For each metric its (training step, value) pairs, ascending in step.

    The last value of each step counts. Where a run went back to a checkpoint, what it had logged beyond that is left
    out: it is not of the training that goes on.
    """
    by_name: dict[str, dict[int, float]] = {}
    for record in read_records(journal_path, damage=damage):
        if record.kind == Kind.METRICS:
            for name, value in record.data.items():
                by_name.setdefault(name, {})[record.step or 0] = value
        elif (first := rewound_to(record)) is not None:
            by_name = {name: {s: v for s, v in values.items() if s < first} for name, values in by_name.items()}
    return {name: sorted(values.items()) for name, values in by_name.items() if values}


def few_points(journal: Path, *, damage: JournalDamage) -> dict[str, list[tuple[int, float]]]:
    """As `metric_history`, without damaged lines; of a long journal not all points of a metric, but its first, last,
    smallest and largest among them.

    Of a metric that has thousands of points and was logged twice at a step without a rewind, both values may count.
    """
    if journal.stat().st_size < _LONG_FROM_BYTES:
        return metric_history(journal, damage=damage)
    from vlatrack.tracking.journal.series import history_of_few_points  # Arrow and numpy take long to import

    return history_of_few_points(journal, damage=damage)


def rewound_to(record: Record) -> int | None:
    """The first step that the run goes back over, if the record says that it does."""
    if record.kind != Kind.EVENT or record.wrong_field() is not None or record.data["name"] != REWOUND:
        return None
    first = record.data["data"].get("from_step")
    return first if type(first) is int else None


@dataclass(frozen=True)
class Rewind:
    """Behind byte `offset` the run went back to before step `first`."""

    offset: int
    first: int


def rewinds_in(journal: Path, *, damage: JournalDamage | None = None) -> list[Rewind]:
    """All of them, found without decoding the metrics: who knows them beforehand reads these once."""
    reader, found = JournalReader(journal, damage=damage), list[Rewind]()
    while (record := reader.read_to_other()) is not None:
        if (first := rewound_to(record)) is not None:
            found.append(Rewind(reader.begin, first))
    return found


def run_status(run_dir: Path, *, damage: JournalDamage | None = None) -> RunStatus:
    """The state of a run from the end of its journal, however long that is; TrackerError if there is none.

    A run whose process is gone without a finish record is KILLED; a copy of one whose process may live is RUNNING.
    """
    journal = RunFiles(run_dir).journal
    if not journal.exists():
        raise TrackerError(f"{run_dir}: no run directory (journal.jsonl is missing)")
    of_training = filter(is_of_training, records_backwards(journal, damage=damage))
    step = next((record.step for record in of_training), None)
    if (end := finish_record(journal, damage=damage)) is not None:
        return RunStatus(end.data["status"], end.data["reason"], step)
    if is_being_written(journal) or copied_from(journal) is not None:
        return RunStatus("RUNNING", None, step)
    return RunStatus("KILLED", reason_without_end(journal), step)


def reason_without_end(journal: Path) -> str:
    """Why a run that nobody writes has no end."""
    at_end = JournalDamage(journal)
    last_record(journal, damage=at_end)
    return "the end of its journal is damaged" if at_end.count else "the training process is gone"


def is_of_training(record: Record) -> bool:
    """Whether metrics say how far training has come; those of an evaluation stand at the step of its checkpoint."""
    return record.step is not None and not all(name.startswith((EVALUATE, SIMULATION)) for name in record.data)


@dataclass(frozen=True)
class Rewinds:
    """All rewound spans of a run as tags `vlatrack.rewound.1: 21-57`, and the newest as the data of its event."""

    tags: Mapping[str, str]
    new: Mapping[str, Scalar] | None

    @classmethod
    def of(cls, run_dir: Path, resume_step: int | None) -> Self:
        """What it means to continue the run from `resume_step`; None: from where its journal ends, if it has one."""
        start = last_start(RunFiles(run_dir).journal)
        tags = {} if start is None else {k: v for k, v in start.data["tags"].items() if k.startswith(_REWOUND_TAG)}
        tags |= {} if start is None else _rewound_in(RunFiles(run_dir).journal)
        reached = None if start is None else run_status(run_dir).last_step
        if resume_step is None or reached is None or reached <= resume_step:
            return cls(tags, None)
        number = len(tags) + 1
        tags[f"{_REWOUND_TAG}{number}"] = f"{resume_step + 1}-{reached}"
        return cls(tags, {"number": number, "from_step": resume_step + 1, "to_step": reached})


def first_start(journal: Path) -> RunStart:
    """The start of the run; TrackerError if the journal does not begin with one."""
    records = JournalReader(journal).read(1)
    if not records or records[0].kind != Kind.START:
        raise TrackerError(f"{journal}: does not begin with the start of a run")
    return RunStart.of(records[0])


def last_event(journal: Path, name: str, data: Mapping[str, Scalar]) -> Record | None:
    """The last event of this name whose data has all of these values; None if there is none."""
    reader, found = JournalReader(journal), None
    while (record := reader.read_to_other()) is not None:
        if record.kind == Kind.EVENT and record.data["name"] == name and data.items() <= record.data["data"].items():
            found = record
    return found


def standing_events(journal: Path, name: str) -> list[Record]:
    """The events of this name, without those of steps that the run went back over later; found without decoding what
    stands between them."""
    found = list[Record]()
    for event in _events(journal, name, REWOUND):
        if event.data["name"] == name:
            found.append(event)
        elif (first := rewound_to(event)) is not None:
            found = [event for event in found if event.data["data"].get("step", -1) < first]
    return found


def last_start(journal: Path, *, damage: JournalDamage | None = None) -> Record | None:
    """The record that began the newest part of a run, found from the end of the file; None for a journal without one,
    which is empty or damaged."""
    if journal.stat().st_size == 0:
        return None
    with journal.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.rfind(_START_MARK)
        while found >= 0:
            begin = content.rfind(b"\n", 0, found) + 1
            records = JournalReader(journal, offset=begin, damage=damage).read(1)
            if records and records[0].kind == Kind.START:
                return records[0]
            found = content.rfind(_START_MARK, 0, begin)  # it was a value of another record
    return None


def _rewound_in(journal: Path) -> dict[str, str]:
    """The tags of the rewinds that a journal tells of; a rollback has no tag of its own while training goes on."""
    spans = [event.data["data"] for event in _events(journal, REWOUND)]
    return {f"{_REWOUND_TAG}{span['number']}": f"{span['from_step']}-{span['to_step']}" for span in spans}


def _events(journal: Path, *names: str) -> list[Record]:
    """The events of these names, in the order of the journal. TrackerError for a damaged line among them."""
    if journal.stat().st_size == 0:
        return []
    offsets = set[int]()
    with journal.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for mark in (f'"name":{json.dumps(name)}'.encode() for name in names):
            found = content.find(mark)
            while found >= 0:
                offsets.add(content.rfind(b"\n", 0, found) + 1)
                found = content.find(mark, found + len(mark))
    records = [record for offset in sorted(offsets) for record in JournalReader(journal, offset=offset).read(1)]
    return [record for record in records if record.kind == Kind.EVENT and record.data["name"] in names]
