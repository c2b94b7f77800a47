"""The health of a run, found in its journal: as far as it is written, and again whenever more of it is."""

import math
from pathlib import Path
from typing import Any

from vlatrack.errors import TrackerError
from vlatrack.health.detectors.not_finite import NotFiniteDetector
from vlatrack.health.finding import Finding, verdict
from vlatrack.health.monitor import HealthMonitor
from vlatrack.health.thresholds import Thresholds
from vlatrack.metrics.schema import TRAIN
from vlatrack.tracking.journal.history import Rewind, rewinds_in, rewound_to
from vlatrack.tracking.journal.records import JournalDamage, JournalReader, Kind, Record
from vlatrack.tracking.run_files import RunFiles

HEALTH, NOTE = "health", "health_note"
"""Names of the events that hold findings: faults, and what is none."""
NON_FINITE = "non_finite"
"""Name of the event of a step that was not taken."""
MOST_FINDINGS = 200
"""Of one run; whoever has not looked after so many does not look at more."""
_AT_ONCE = 500


class JournalHealth:
    """Follows a journal and runs the detectors over it.

    What the run went back over later does not count: a rewind has the journal read once more from its beginning. So
    the findings depend on the journal alone, whoever reads it, however often.
    """

    def __init__(self, journal: Path, thresholds: Thresholds, *, damage: JournalDamage | None = None) -> None:
        self._journal, self._thresholds, self._damage = journal, thresholds, damage
        self._rewinds = rewinds_in(journal, damage=damage)
        self._begin()

    def _begin(self) -> None:
        self._reader = JournalReader(self._journal, damage=self._damage)
        self._monitor = HealthMonitor(self._thresholds)
        self._has_not_finite = False
        self.found: list[Finding] = []
        """All findings so far, oldest first."""
        self.recorded: set[tuple[str, str, int]] = set()
        """The identities of those that stand in the journal as events."""
        self.seq = -1
        """The last record that was read."""
        self.has_ended = False
        """Whether the last part of the run has its finish record."""

    def read(self) -> None:
        """Take notice of what was written since the last call.

        Raises TrackerError for a damaged line, unless such are left out.
        """
        while True:
            offset = self._reader.offset
            records = self._reader.read(_AT_ONCE)
            if not records:
                return
            for record in records:
                self._take(record, offset)
            self.seq = records[-1].seq

    def rewinds_over(self, step: int) -> int:
        """How often the run has gone back over a step."""
        return sum(step >= rewind.first for rewind in self._rewinds)

    def _take(self, record: Record, offset: int) -> None:
        match record.kind:
            case Kind.START:
                self.has_ended = False
                self._monitor.restart()
            case Kind.METRICS:
                self._observe(record, offset)
            case Kind.FINISH:
                self.has_ended = True
            case Kind.EVENT if is_event(record):
                self._take_event(record, offset)

    def _observe(self, record: Record, offset: int) -> None:
        step = record.step or 0
        if self._was_left(step, offset):
            return
        values = {name: _float(value) for name, value in record.data.items()}
        found = self._monitor.observe(values, step=step, t_ms=record.t_ms)
        if self._has_not_finite:  # the record of a window in which no step was taken says the same once more
            found = [finding for finding in found if finding.detector != NotFiniteDetector.name]
        self._add(found)
        if math.isfinite(values.get(f"{TRAIN}_loss", math.nan)):
            self._has_not_finite = False

    def _take_event(self, record: Record, offset: int) -> None:
        if (first := rewound_to(record)) is not None:
            if (rewind := Rewind(offset, first)) not in self._rewinds:
                self._rewinds.append(rewind)
                self._begin()
            return
        name, data = record.data["name"], record.data["data"]
        step = data.get("step")
        if type(step) is not int or self._was_left(step, offset):
            return
        if name in (HEALTH, NOTE) and (finding := finding_of(record)) is not None:
            self.recorded.add(finding.identity)
        elif name == NON_FINITE and self._thresholds.not_finite is not None and not self._has_not_finite:
            self._has_not_finite = True  # the step was not taken, so its record has no such value
            detector = NotFiniteDetector
            reason = str(data.get("reason"))
            lost = Finding(detector.name, detector.severity, f"{TRAIN}_loss", step, math.nan, reason, detector.remedy)
            self._add([lost])

    def _add(self, findings: list[Finding]) -> None:
        self.found += findings[: MOST_FINDINGS - len(self.found)]

    def _was_left(self, step: int, offset: int) -> bool:
        return any(rewind.offset > offset and step >= rewind.first for rewind in self._rewinds)


def finding_of(event: Record) -> Finding | None:
    """The finding that an event of the journal holds; None if it holds none."""
    try:
        return Finding.of(event.data["data"])
    except (ValueError, OverflowError):
        return None


def thresholds_of(files: RunFiles) -> Thresholds | None:
    """The thresholds that a run is watched with; None if it is not watched.

    Raises TrackerError for a damaged file.
    """
    try:
        return Thresholds.from_json(files.health.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrackerError(f"{files.health}: cannot be read ({error.strerror}); make it readable") from error
    except (ValueError, RecursionError) as error:
        raise TrackerError(f"{files.health}: damaged ({error}); resume the run to write it anew") from error


def recorded_findings(journal: Path, *, damage: JournalDamage | None = None) -> list[Finding]:
    """The findings that stand in a journal, without those of steps that the run went back over.

    An event of that name that holds no finding, as somebody's script may have written one, is passed over.
    """
    reader, found = JournalReader(journal, damage=damage), list[Finding]()
    while (record := reader.read_to_other()) is not None:
        if (first := rewound_to(record)) is not None:
            found = [finding for finding in found if finding.step < first]
        elif is_event(record) and record.data["name"] == HEALTH and (finding := finding_of(record)) is not None:
            found.append(finding)
    return found


def health_of(
    run_dir: Path, thresholds: Thresholds | None = None, *, damage: JournalDamage | None = None
) -> list[Finding]:
    """What the detectors find in the journal of a run, whether or not it was watched; `thresholds` are those that the
    run was watched with, or else the defaults, if None.

    Raises TrackerError: there is no such run, or its journal is damaged and no `damage` is given.
    """
    files = RunFiles(run_dir)
    if not files.journal.exists():
        raise TrackerError(f"{run_dir}: no run directory (journal.jsonl is missing)")
    health = JournalHealth(files.journal, thresholds or thresholds_of(files) or Thresholds(), damage=damage)
    health.read()
    return health.found


def verdict_of(journal: Path) -> str:
    """`healthy`, or what the findings in a journal say."""
    return verdict(recorded_findings(journal))


def is_event(record: Record) -> bool:
    """Whether it is a whole event."""
    return record.kind == Kind.EVENT and record.wrong_field() is None


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits, in a journal of somebody else
        return math.inf
