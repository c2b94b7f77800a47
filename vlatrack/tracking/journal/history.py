"""What a run's journal tells, for reports and the terminal."""

from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.journal import Kind, finish_record, is_being_written, read_records, records_backwards
from vlatrack.tracking.run_files import RunFiles

REWOUND = "rewound"
"""Name of the event that marks in the journal which steps a resume goes back over."""


@dataclass(frozen=True)
class RunStatus:
    """State of a run: RUNNING, FINISHED, FAILED or KILLED; `last_step` is its last logged training step.

    A run that has ended may still be written for a while: figures and other files are logged after its end.
    """

    status: str
    reason: str | None
    last_step: int | None


def metric_history(journal_path: Path) -> dict[str, list[tuple[int, float]]]:
    """For each metric its (training step, value) pairs, ascending in step.

    The last value of each step counts. Where a run went back to a checkpoint, what it had logged beyond that is left
    out: it is not of the training that goes on.
    """
    by_name: dict[str, dict[int, float]] = {}
    for record in read_records(journal_path):
        if record.kind == Kind.METRICS:
            for name, value in record.data.items():
                by_name.setdefault(name, {})[record.step or 0] = value
        elif record.kind == Kind.EVENT and record.data["name"] == REWOUND:
            first = record.data["data"]["from_step"]
            by_name = {name: {s: v for s, v in values.items() if s < first} for name, values in by_name.items()}
    return {name: sorted(values.items()) for name, values in by_name.items() if values}


def run_status(run_dir: Path) -> RunStatus:
    """The state of a run from the end of its journal, however long that is; TrackerError if there is none.

    A run whose process is gone without a finish record is KILLED.
    """
    journal = RunFiles(run_dir).journal
    if not journal.exists():
        raise TrackerError(f"{run_dir}: no run directory (journal.jsonl is missing)")
    step = next((record.step for record in records_backwards(journal) if record.step is not None), None)
    if (end := finish_record(journal)) is not None:
        return RunStatus(end.data["status"], end.data["reason"], step)
    if is_being_written(journal):
        return RunStatus("RUNNING", None, step)
    return RunStatus("KILLED", "the training process is gone", step)
