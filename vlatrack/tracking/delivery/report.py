"""What became of a run's records at each backend, read from the cursors."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.registry import backend_label, backends_of
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.journal import last_record
from vlatrack.tracking.run_files import RunFiles


@dataclass(frozen=True)
class BackendDelivery:
    """What became of one backend's share; counts are journal records, `look` says where a person finds the run."""

    label: str
    delivered: int
    undelivered: int
    dead_letters: int
    look: str | None
    error: str | None


@dataclass(frozen=True)
class DeliveryReport:
    """What became of a run's records; `lost` ones never reached the journal (a full disk)."""

    backends: tuple[BackendDelivery, ...]
    lost: int

    @property
    def complete(self) -> bool:
        return self.lost == 0 and all(b.undelivered == 0 and b.dead_letters == 0 for b in self.backends)


def labels_of(run_dir: Path) -> list[str]:
    """The backends that a run reports to, as `mlflow-0`; none if it has none or never started."""
    try:
        text = RunFiles(run_dir).backends.read_text()
    except FileNotFoundError:
        return []
    try:
        return [backend_label(config, index) for index, config in enumerate(backends_of(text))]
    except (ValueError, TypeError) as error:
        raise TrackerError(
            f"{RunFiles(run_dir).backends}: damaged ({error}); resume the run to write it anew"
        ) from error


def delivery_report(run_dir: Path, labels: Iterable[str], *, lost: int = 0) -> DeliveryReport:
    """How far each of these backends has got."""
    files = RunFiles(run_dir)
    last = last_record(files.journal)
    total = 0 if last is None else last.seq + 1
    shares = []
    for label in labels:
        cursor = CursorFile(files.delivery, label).read()
        done = cursor.seq + 1
        shares.append(BackendDelivery(label, done, total - done, cursor.dead_letters, cursor.url, cursor.error))
    return DeliveryReport(tuple(shares), lost)
