"""What a resume goes back over: steps that were logged beyond the checkpoint, which the run now logs again."""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vlatrack.tracking.backends.base import Scalar
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.journal.journal import JournalReader, Kind, Record
from vlatrack.tracking.run_files import RunFiles

_TAG = "vlatrack.rewound."
_START_MARK = b'"kind":"start"'


@dataclass(frozen=True)
class Rewinds:
    """All rewound spans of a run as tags `vlatrack.rewound.1: 21-57`, and the newest as the data of its event."""

    tags: Mapping[str, str]
    new: Mapping[str, Scalar] | None

    @classmethod
    def of(cls, run_dir: Path, resume_step: int | None) -> Self:
        """What it means to continue the run from `resume_step`; None: from where its journal ends, if it has one."""
        start = last_start(RunFiles(run_dir).journal)
        tags = {} if start is None else {k: v for k, v in start.data["tags"].items() if k.startswith(_TAG)}
        reached = None if start is None else run_status(run_dir).last_step
        if resume_step is None or reached is None or reached <= resume_step:
            return cls(tags, None)
        number = len(tags) + 1
        tags[f"{_TAG}{number}"] = f"{resume_step + 1}-{reached}"
        return cls(tags, {"number": number, "from_step": resume_step + 1, "to_step": reached})


def last_start(journal: Path) -> Record | None:
    """The record that began the newest part of a run, None for an empty journal; found from the end of the file."""
    if journal.stat().st_size == 0:
        return None
    with journal.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.rfind(_START_MARK)
        while found >= 0:
            begin = content.rfind(b"\n", 0, found) + 1
            records = JournalReader(journal, offset=begin).read(1)
            if records and records[0].kind == Kind.START:
                return records[0]
            found = content.rfind(_START_MARK, 0, begin)  # a value of another record only looked like it
    return None
