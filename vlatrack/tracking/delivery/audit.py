"""Comparing a run's journal with what its backends say that they hold."""

from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import Audit, BackendConfig, RejectedError, RunStart
from vlatrack.tracking.backends.registry import backend_label, backends_of, connect
from vlatrack.tracking.journal.history import ValueCount, run_status
from vlatrack.tracking.journal.records import JournalReader, Kind, read_records
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import NOTHING, Trust, untrusted


@dataclass(frozen=True)
class BackendAudit:
    """One backend beside the journal; `differences` is empty if they agree in all that the backend can tell."""

    label: str
    journal: Audit
    backend: Audit
    differences: tuple[str, ...]
    cannot_tell: str | None = None
    """Why the backend is none that could be compared."""


def audit_run(run_dir: Path, labels: list[str], *, trust: Trust = NOTHING) -> list[BackendAudit]:
    """Ask each of these backends; reads the whole journal. One that cannot be asked now, or that is not to be trusted,
    has that as its difference."""
    files = RunFiles(run_dir)
    expected, start = journal_audit(run_dir), _start_of(files.journal)
    audits = []
    for index, config in enumerate(backends_of(files.backends.read_text())):
        label = backend_label(config, index)
        if label in labels:
            if (reason := untrusted(config, trust=trust)) is not None:
                audits.append(BackendAudit(label, expected, Audit(), (f"not asked: {reason}",)))
                continue
            audits.append(_audit_backend(label, config, run_dir, start, expected))
    return audits


def journal_audit(run_dir: Path) -> Audit:
    """What the journal holds, in the terms of a backend's audit."""
    count, last_seq = ValueCount(), -1
    for record in read_records(RunFiles(run_dir).journal):
        if record.kind == Kind.METRICS:
            count.add(record.data, step=record.step or 0, t_ms=record.t_ms)
            last_seq = record.seq
    return Audit(run_status(run_dir).status, len(count.names), count.values, last_seq)


def _start_of(journal: Path) -> RunStart:
    records = JournalReader(journal).read(1)
    if not records or records[0].kind != Kind.START:
        raise TrackerError(f"{journal}: holds no run yet")
    return RunStart.of(records[0])


def _audit_backend(label: str, config: BackendConfig, run_dir: Path, start: RunStart, expected: Audit) -> BackendAudit:
    try:
        held = connect(config, run_dir).audit(start)
    except RejectedError as verdict:
        return BackendAudit(label, expected, Audit(), (), str(verdict))
    except Exception as error:  # the clients of the trackers raise whatever they like; the table shows it
        reason = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
        return BackendAudit(label, expected, Audit(), (f"cannot be asked ({reason})",))
    pairs = (
        ("status", expected.status, held.status),
        ("metrics", expected.metric_keys, held.metric_keys),
        ("values", expected.values, held.values),
        ("last record", expected.last_seq, held.last_seq),
    )
    if held == Audit():
        return BackendAudit(label, expected, held, ("does not know the run",))
    differences = tuple(
        f"{what}: {ours} here, {theirs} there" for what, ours, theirs in pairs if theirs not in (None, ours)
    )
    return BackendAudit(label, expected, held, differences)
