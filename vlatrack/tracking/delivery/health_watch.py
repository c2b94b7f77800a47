"""The detectors at work beside a training: a thread of the delivery process that follows the journal.

What it finds it tells the training process, which alone writes the journal, as JSON lines through a pipe. It keeps no
file: a process that takes over reads the journal from its beginning, finds the same, and tells what does not stand
there yet.
"""

import json
import logging
import os
import threading
from dataclasses import dataclass
from typing import IO

from vlatrack.errors import TrackerError
from vlatrack.health.finding import Finding
from vlatrack.health.thresholds import Thresholds
from vlatrack.tracking.health import JournalHealth
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.run_files import RunFiles

POLL_S = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Told:
    """What the training process is told: how far the journal has been read, and a finding up to there, if there is
    one."""

    seq: int
    has_ended: bool
    """Whether the end of the run has been read."""
    finding: Finding | None = None

    def line(self) -> str:
        data = None if self.finding is None else self.finding.data()
        return json.dumps({"seq": self.seq, "has_ended": self.has_ended, "finding": data}) + "\n"

    @classmethod
    def of(cls, line: str) -> "Told":
        """The inverse of `line`; ValueError for a line that was cut, as by a killed process."""
        told = json.loads(line)
        finding = told["finding"]
        return cls(told["seq"], told["has_ended"], None if finding is None else Finding.of(finding))


class HealthWatch:
    """Follows the journal to the end of the run; `run` is the body of its thread."""

    def __init__(self, files: RunFiles, thresholds: Thresholds, stopping: threading.Event, pipe: int) -> None:
        """`pipe` is the number of the open file that leads to the training process."""
        self._files, self._thresholds, self._stopping = files, thresholds, stopping
        self._pipe = pipe
        self._told: set[tuple[tuple[str, str, int], int]] = set()
        """Identities, each with how often the run had gone back over that step."""

    def run(self) -> None:
        """Read and tell until the run is over, the journal is damaged, or the training process is gone."""
        try:
            with os.fdopen(self._pipe, "w", encoding="utf-8") as pipe:
                self._follow(pipe)
        except BrokenPipeError:
            _log.info("the training process no longer asks for its health")
        except TrackerError as error:
            _log.warning("health is no longer watched: %s", error)
        except OSError as error:  # the folder was moved: the next delivery process finds it
            _log.warning("health is no longer watched (%s)", error)

    def _follow(self, pipe: IO[str]) -> None:
        health = JournalHealth(self._files.journal, self._thresholds)
        is_over = False
        while not is_over:
            is_over = self._stopping.is_set() or not is_being_written(self._files.journal)
            before = health.seq
            health.read()
            self._tell(health, pipe)
            if health.seq != before and health.has_ended:
                pipe.write(Told(health.seq, True).line())
                pipe.flush()
            self._stopping.wait(POLL_S)

    def _tell(self, health: JournalHealth, pipe: IO[str]) -> None:
        for finding in health.found:
            key = finding.identity, health.rewinds_over(finding.step)
            if key not in self._told and finding.identity not in health.recorded:
                pipe.write(Told(health.seq, health.has_ended, finding).line())
                self._told.add(key)
        pipe.flush()
