"""A run as one row of a table of many: its state, how far it is, its last losses, its health, what trackers lack.

A row costs little whatever the length of the journal: metrics are read from its end alone, other records once. Damaged
lines are passed over, and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlatrack.health.finding import Finding
from vlatrack.metrics.names import SPLITS
from vlatrack.tracking.delivery.report import delivery_report, targets_of
from vlatrack.tracking.health import HEALTH, finding_of, is_event
from vlatrack.tracking.journal.history import is_of_training, reason_without_end, rewound_to
from vlatrack.tracking.journal.progress import PACE_RECORDS, TrainingProgress
from vlatrack.tracking.journal.records import Kind, Record, decode_record, newline_before
from vlatrack.tracking.journal.series import JournalSeries
from vlatrack.tracking.lock import copied_from, lock_holder
from vlatrack.tracking.run_files import RunFiles

LOSSES = ("closs", "loss_ct", "z_loss", "loss")
"""The documented losses, named without split."""
_TAIL_BYTES = 1 << 18


@dataclass(frozen=True)
class RunRow:
    """One run; times are Unix milliseconds, rates steps per second; None is what is not known (yet)."""

    id: str  # <experiment>/<run-id>
    name: str
    experiment: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED or UNREADABLE
    reason: str | None = None
    started_ms: int | None = None
    updated_ms: int | None = None
    step: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    epochs: int | None = None
    steps_per_s: float | None = None
    eta_s: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    """The last value of each documented loss on each split, by its documented name."""
    findings: tuple[Finding, ...] = ()
    is_watched: bool = False
    """Whether its health was looked at while it trained; else nobody knows of it without findings."""
    undelivered: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    host: str | None = None
    group: str | None = None
    overrides: str | None = None
    imported_from: str | None = None
    """Where the logs of another system lay, whose times are those of the import."""
    damaged_lines: int = 0


class RunReader:
    """Reads the row of one run, again and again while it goes on."""

    def __init__(self, run_dir: Path) -> None:
        """Raises TrackerError for a folder that no run can be in."""
        self.files = RunFiles(run_dir)
        self.id = f"{run_dir.parent.name}/{run_dir.name}"
        self._others = JournalSeries(self.files.journal, with_metrics=False)

    def row(self) -> RunRow:
        """The row as it is now.

        Raises:
            TrackerError, OSError: the run's files cannot be read.
        """
        self._others.read_all()
        others = self._others.others
        starts = [record for record in others if record.kind == Kind.START and record.wrong_field() is None]
        status, reason, host = self._state()
        progress = _progress(self.files.journal, starts[-1] if starts else None, _first_step_gone(others))
        targets = targets_of(self.files.run_dir)
        damage = self._others.damage
        shares = delivery_report(self.files.run_dir, targets, targets=targets, damage=damage).backends
        start = starts[-1].data if starts else {"tags": {}}
        return RunRow(
            id=self.id,
            name=progress.name or self.files.run_dir.name,
            experiment=self.files.run_dir.parent.name,
            status=status,
            reason=reason,
            started_ms=starts[0].t_ms if starts else None,
            updated_ms=progress.last_ms,
            step=progress.step,
            total_steps=progress.total_steps,
            epoch=progress.epoch,
            epochs=progress.epochs,
            steps_per_s=progress.steps_per_s,
            eta_s=progress.left_s if status == "RUNNING" else None,
            losses=progress.losses,
            findings=standing_findings(others),
            is_watched=self.files.health.exists(),
            undelivered={share.label: share.undelivered for share in shares if share.undelivered},
            refused={share.label: share.dead_letters for share in shares if share.dead_letters},
            host=host,
            group=start.get("group"),
            overrides=start["tags"].get("vlatrack.overrides"),
            imported_from=start["tags"].get("vlatrack.imported_from"),
            damaged_lines=damage.count,
        )

    def _state(self) -> tuple[str, str | None, str | None]:
        """Status, reason and, of a run that is being written, the host."""
        for record in reversed(self._others.others):
            if record.kind == Kind.FINISH:
                return record.data["status"], record.data["reason"], None
            if record.kind == Kind.START:
                break
        if (holder := lock_holder(self.files.journal)) is not None:
            return "RUNNING", None, holder.host or None
        if copied_from(self.files.journal) is not None:
            return "RUNNING", "a copy of a run that had not ended", None
        return "KILLED", reason_without_end(self.files.journal), None


def standing_findings(others: Sequence[Record]) -> tuple[Finding, ...]:
    """What health events among the records that are not of metrics say, without those of steps that the run went back
    over later."""
    found: list[Finding] = []
    for record in filter(is_event, others):
        if (first := rewound_to(record)) is not None:
            found = [finding for finding in found if finding.step < first]
        elif record.data["name"] == HEALTH and (finding := finding_of(record)) is not None:
            found.append(finding)
    return tuple(found)


def _first_step_gone(others: Sequence[Record]) -> tuple[int, int] | None:
    """Of the last rewind its record and the first step that it goes back over; None if there was none."""
    for record in reversed(others):
        if (first := rewound_to(record)) is not None:
            return record.seq, first
    return None


def _progress(journal: Path, start: Record | None, rewind: tuple[int, int] | None) -> TrainingProgress:
    """How far the training is, from the last part of its journal."""
    trained: list[Record] = []
    evaluated: dict[str, Record] = {}
    last_ms: int | None = None
    for line in _lines_backwards(journal):
        missing = [split for split in SPLITS[1:] if split not in evaluated]
        if len(trained) == PACE_RECORDS and not any(f'"{split}_'.encode() in line for split in missing):
            if not missing:
                break
            continue  # undecoded: a run that is watched is read again every second
        try:
            record = decode_record(line)
        except ValueError:  # damaged
            continue
        last_ms = last_ms or record.t_ms
        if record.kind != Kind.METRICS or record.step is None:
            continue
        if rewind is not None and record.seq < rewind[0] and record.step >= rewind[1]:
            continue
        if is_of_training(record) and len(trained) < PACE_RECORDS and any(n.startswith("train_") for n in record.data):
            trained.append(record)
        for split in missing:
            if any(f"{split}_{loss}" in record.data for loss in LOSSES):
                evaluated[split] = record
    if last_ms is None:
        return TrainingProgress()
    return TrainingProgress.from_records(start, trained, list(evaluated.values()), last_ms=last_ms)


def _lines_backwards(journal: Path) -> Iterator[bytes]:
    """The complete lines in the last part of a journal, newest first."""
    with journal.open("rb") as file:
        size = file.seek(0, 2)
        end = newline_before(file.fileno(), size) + 1
        begin = newline_before(file.fileno(), max(0, end - _TAIL_BYTES)) + 1
        file.seek(begin)
        yield from reversed(file.read(end - begin).splitlines(keepends=True))
