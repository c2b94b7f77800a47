"""A run as one row of a table of many: its state, how far it is, its last losses, its health, what trackers lack.

A row costs little whatever the length of the journal: metrics are read from its end alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlatrack.metrics.schema import SPLITS
from vlatrack.tracking.delivery.report import delivery_report, targets_of
from vlatrack.tracking.journal.history import REWOUND, is_of_training
from vlatrack.tracking.journal.records import Kind, Record, decode_record, newline_before
from vlatrack.tracking.journal.series import JournalSeries
from vlatrack.tracking.lock import copied_from, lock_holder
from vlatrack.tracking.run_files import RunFiles

HEALTH = "health"
"""The name of the events that say what is wrong with a training."""
LOSSES = ("closs", "loss_ct", "z_loss", "loss")
"""The documented losses, named without split."""

_TAIL_BYTES = 1 << 18
_PACE_OVER_S = 60.0


@dataclass(frozen=True)
class Finding:
    """What is wrong with a training, as a health event tells it."""

    detector: str
    severity: str  # warning or critical
    metric: str
    step: int
    message: str
    remedy: str


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
    undelivered: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    host: str | None = None
    group: str | None = None
    overrides: str | None = None
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
        journal, others = self.files.journal, self._others
        start = next((record for record in reversed(others.others) if record.kind == Kind.START), None)
        data = {} if start is None or start.wrong_field() else start.data
        params: Mapping[str, object] = data.get("params", {})
        status, reason, host = self._state()
        is_running = status == "RUNNING"
        tail = _Tail.of(journal, with_pace=is_running)
        total, epochs = _length(params, tail)
        left = None if total is None or tail.step is None else max(0, total - tail.step)
        targets = targets_of(self.files.run_dir)
        shares = delivery_report(self.files.run_dir, targets, targets=targets).backends
        return RunRow(
            id=self.id,
            name=str(data.get("name", self.files.run_dir.name)),
            experiment=self.files.run_dir.parent.name,
            status=status,
            reason=reason,
            started_ms=None if start is None else self._first_start_ms(),
            updated_ms=others.last_t_ms if tail.t_ms is None else tail.t_ms,
            step=tail.step,
            total_steps=total,
            epoch=tail.values.get("epoch"),
            epochs=epochs,
            steps_per_s=tail.steps_per_s,
            eta_s=left / tail.steps_per_s if is_running and left is not None and tail.steps_per_s else None,
            losses={name: value for name, value in tail.values.items() if name != "epoch"},
            findings=standing_findings(others.others),
            undelivered={share.label: share.undelivered for share in shares if share.undelivered},
            refused={share.label: share.dead_letters for share in shares if share.dead_letters},
            host=host,
            group=data.get("group"),
            overrides=_text(data.get("tags", {}).get("vlatrack.overrides")),
            damaged_lines=len(others.damaged),
        )

    def _first_start_ms(self) -> int | None:
        first = self._others.others[0]
        return first.t_ms if first.kind == Kind.START else None

    def _state(self) -> tuple[str, str | None, str | None]:
        """Status, reason and, of a run that is being written, the host."""
        for record in reversed(self._others.others):
            if record.kind == Kind.FINISH:
                return str(record.data["status"]), _text(record.data["reason"]), None
            if record.kind == Kind.START:
                break
        if (holder := lock_holder(self.files.journal)) is not None:
            return "RUNNING", None, holder.host or None
        if copied_from(self.files.journal) is not None:
            return "RUNNING", "a copy of a run that had not ended", None
        return "KILLED", "the training process is gone", None


def standing_findings(records: "list[Record]") -> tuple[Finding, ...]:
    """What health events say, without those of steps that the run went back over later."""
    found: list[Finding] = []
    for record in records:
        if record.kind != Kind.EVENT or record.wrong_field() is not None:
            continue
        data = record.data["data"]
        if record.data["name"] == REWOUND:
            first = data.get("from_step")
            found = [finding for finding in found if not isinstance(first, int) or finding.step < first]
        elif record.data["name"] == HEALTH:
            texts = (str(data.get(key) or "") for key in ("detector", "severity", "metric", "message", "remedy"))
            detector, severity, metric, message, remedy = texts
            step = data.get("step")
            found.append(Finding(detector, severity, metric, step if isinstance(step, int) else 0, message, remedy))
    return tuple(found)


@dataclass(frozen=True)
class _Tail:
    """What the end of a journal tells."""

    step: int | None
    t_ms: int | None
    values: Mapping[str, float]
    steps_per_s: float | None

    @classmethod
    def of(cls, journal: Path, *, with_pace: bool) -> "_Tail":
        wanted = {f"{split}_{name}" for split in SPLITS for name in LOSSES} | {"epoch"}
        values: dict[str, float] = {}
        last: Record | None = None
        earlier: Record | None = None
        t_ms: int | None = None
        for record in _backwards(journal):
            t_ms = t_ms or record.t_ms
            if record.kind == Kind.START:
                break  # a resumed run has another pace
            if record.kind != Kind.METRICS:
                continue
            for name in wanted & record.data.keys():
                values.setdefault(name, record.data[name])
            if is_of_training(record):
                last = last or record
                earlier = record
                is_long = last.t_ms - record.t_ms > 1e3 * _PACE_OVER_S or not with_pace
                if is_long and wanted <= values.keys():
                    break
        if not with_pace or last is None or earlier is None or last.t_ms <= earlier.t_ms:
            return cls(None if last is None else last.step, t_ms, values, None)
        pace = ((last.step or 0) - (earlier.step or 0)) / (last.t_ms - earlier.t_ms) * 1e3
        return cls(last.step, t_ms, values, pace if pace > 0 else None)


def _backwards(journal: Path) -> Iterator[Record]:
    """The records in the last part of a journal, newest first; lines that are none are passed over."""
    with journal.open("rb") as file:
        size = file.seek(0, 2)
        end = newline_before(file.fileno(), size) + 1
        begin = newline_before(file.fileno(), max(0, end - _TAIL_BYTES)) + 1
        file.seek(begin)
        lines = file.read(end - begin).splitlines(keepends=True)
    for line in reversed(lines):
        try:
            yield decode_record(line)
        except ValueError:
            continue


def _length(params: Mapping[str, object], tail: _Tail) -> tuple[int | None, int | None]:
    """How many steps and epochs the training is to have, as far as the settings and its pace through epochs say it."""
    epochs, most = params.get("train.epochs"), params.get("train.max_steps")
    known_epochs = epochs if isinstance(epochs, int) else None
    steps: list[int] = [most] if isinstance(most, int) else []
    passed = tail.values.get("epoch")
    if known_epochs is not None and passed and tail.step:
        steps.append(max(tail.step, round(known_epochs * tail.step / passed)))
    return min(steps, default=None), known_epochs


def _text(value: object) -> str | None:
    return None if value is None else str(value)
