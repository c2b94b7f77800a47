"""What runs are like now, for people and programs that look at many: how they go, whose they are, what is missing."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vlatrack.errors import TrackerError
from vlatrack.health.finding import HEALTHY, Finding, Severity
from vlatrack.tracking.delivery.causes import one_line
from vlatrack.tracking.delivery.report import RunOverview, Unreadable, overview_of, run_directories
from vlatrack.tracking.health import recorded_findings
from vlatrack.tracking.journal.progress import TrainingProgress
from vlatrack.tracking.journal.records import JournalDamage
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.sharing import owner_of

StateWord = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "STALE", "UNREADABLE"]


@dataclass(frozen=True)
class RunState:
    """One run that can be read."""

    run_dir: Path
    overview: RunOverview
    progress: TrainingProgress
    findings: tuple[Finding, ...]
    user: str
    """who owns the directory"""
    damaged: str | None = None
    """the lines of its journal that are left out, as far as they were met"""

    @property
    def word(self) -> StateWord:
        """STALE: its process is gone, and nobody has written its end."""
        status: Any = self.overview.status.status
        return "STALE" if self.overview.stale else status

    @property
    def is_running(self) -> bool:
        return self.word == "RUNNING"

    @property
    def step(self) -> int | None:
        return self.overview.status.last_step

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of the training; None if it is not under way, or nobody can tell."""
        return self.progress.left_s if self.is_running else None

    @property
    def health(self) -> str | None:
        """``healthy``, ``warning`` or ``critical``; what is no fault does not count. None of a run that was not watched
        and has no finding: nobody knows."""
        severities = {finding.severity for finding in self.findings} - {Severity.INFO}
        worst = Severity.CRITICAL if Severity.CRITICAL in severities else Severity.WARNING
        if not severities:
            return HEALTHY if RunFiles(self.run_dir).health.exists() else None
        return str(worst)


def run_states(runs: Path) -> Iterator[RunState | Unreadable]:
    """Every run `<runs>/<experiment>/<run-id>` by name; TrackerError if the folder is missing or cannot be read."""
    for entry in run_directories(runs):
        state = entry if isinstance(entry, Unreadable) else state_of(entry)
        if state is not None:
            yield state


def state_of(run_dir: Path) -> RunState | Unreadable | None:
    """None if there is no run; whatever is wrong with one must not keep the others from being shown."""
    damage = JournalDamage(run_dir / "journal.jsonl")
    overview = overview_of(run_dir, damage=damage)
    if not isinstance(overview, RunOverview):
        return overview
    journal = RunFiles(run_dir).journal
    try:
        found = recorded_findings(journal, damage=damage)
        progress = TrainingProgress.of(journal, damage=damage)
        if damage.count and progress.last_ms is None:
            return Unreadable(run_dir, "its journal holds no record")
        return RunState(run_dir, overview, progress, tuple(found), owner_of(run_dir), damage.told())
    except (TrackerError, OSError) as error:
        return Unreadable(run_dir, str(error))
    except Exception as error:  # somebody has made this journal, to whom no rule applies
        return Unreadable(run_dir, f"its journal is damaged ({one_line(error)})")


def as_json(entry: RunState | Unreadable, runs: Path) -> str:
    """One line of strict JSON, the same keys for every run; docs/terminal.md says what they mean."""
    run = entry.run_dir.relative_to(runs)
    content: dict[str, Any] = {
        "run": run.as_posix(),
        "directory": str(entry.run_dir.absolute()),
        "experiment": run.parts[0],
        "status": "UNREADABLE",
        "error": None,
        **dict.fromkeys(
            (
                "name",
                "job",
                "reason",
                "step",
                "total_steps",
                "epoch",
                "epochs",
                "steps_per_s",
                "left_s",
                "started",
                "logged",
            )
        ),
        "losses": {},
        "owner": {"user": None, "host": None, "pid": None},
        "health": None,
        "findings": [],
        "trackers": [],
        "damaged": None,
    }
    if isinstance(entry, Unreadable):
        content["error"] = entry.reason
    else:
        content |= _content_of(entry)
    return json.dumps(_plain(content), allow_nan=False)


def _content_of(state: RunState) -> dict[str, Any]:
    overview, progress = state.overview, state.progress
    writer = overview.writer
    return {
        "status": state.word,
        "name": progress.name,
        "job": progress.job,
        "reason": overview.status.reason,
        "step": state.step,
        "total_steps": progress.total_steps,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "steps_per_s": progress.steps_per_s,
        "left_s": state.left_s,
        "started": _time(progress.started_ms),
        "logged": _time(progress.last_ms),
        "losses": dict(progress.losses),
        "owner": {
            "user": state.user,
            "host": writer.host if writer is not None and writer.host else None,
            "pid": writer.pid if writer is not None and writer.pid else None,
        },
        "health": state.health,
        "findings": [finding.data() for finding in state.findings],
        "trackers": [
            {
                "tracker": share.label,
                "delivered": share.delivered,
                "undelivered": share.undelivered,
                "refused": share.dead_letters,
                "url": share.url,
                "error": share.error,
            }
            for share in overview.backends
        ],
        "damaged": state.damaged,
    }


def _time(t_ms: int | None) -> str | None:
    try:
        return None if t_ms is None else datetime.fromtimestamp(t_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):  # no time of this era
        return None


def _plain(value: Any) -> Any:
    """As JSON has it: NaN and infinities by their names, as in the journal."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def age_s(state: RunState) -> float:
    """Seconds since its last record; infinite for a run without one."""
    return math.inf if state.progress.last_ms is None else time.time() - state.progress.last_ms / 1000
