"""The files of a run, below ``runs/<experiment>/<run-id>/``."""

import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from vlatrack.errors import CheckpointError, SpecError
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.spec.models import ExperimentSpec
from vlatrack.training.checkpoint.files import list_checkpoints


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of one run lies."""

    path: Path

    @classmethod
    def create(cls, runs: Path, spec: ExperimentSpec) -> Self:
        """A new directory, named by the time and four random characters, with the resolved spec in it."""
        run_id = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        path = runs / spec.name / run_id
        path.mkdir(parents=True, mode=0o700)  # for the user alone: a diff or a path may be nobody else's business
        directory = cls(path)
        directory.spec_file.write_text(dump_spec(spec))
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            SpecError: there is no run at ``path``.
        """
        if not (path / "spec.yaml").is_file():
            raise SpecError(f"{path}: not a run directory (it has no spec.yaml); give runs/<experiment>/<run-id>")
        return cls(path)

    @property
    def run_id(self) -> str:
        return self.path.resolve().name

    @property
    def uid(self) -> str:
        """The run's name across machines and trackers, at most 64 characters."""
        return f"{self.path.resolve().parent.name[:40]}-{self.run_id}"

    @property
    def runs(self) -> Path:
        """The folder that holds all experiments."""
        return self.path.resolve().parent.parent

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def journal_file(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    def rank_error(self, number: int | str) -> Path:
        """Why a process other than the first failed."""
        return self.path / f"error-rank{number}.txt"

    def rank_stopped(self, number: int | str) -> Path:
        """What ended a process other than the first, if no error of its own did."""
        return self.path / f"stopped-rank{number}.txt"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def code_cache(self) -> Path:
        """Shared by all runs below the same folder."""
        return self.runs / ".cache" / "codes"

    def spec(self) -> ExperimentSpec:
        return load_spec(self.spec_file)

    def log_file(self, split: str) -> Path:
        return self.path / LOG_FILES[split][0]

    def checkpoint(self, which: str) -> Path:
        """``last``, ``best``, or the name of a checkpoint folder.

        Raises:
            CheckpointError: there is none of that name.
        """
        present = {path.name: path for path in list_checkpoints(self.checkpoints)}
        if not present:
            raise CheckpointError(f"{self.checkpoints}: no complete checkpoint yet")
        if which == "last":
            return present[max(present)]
        if which == "best":
            which = self._best() or max(present)
        if which not in present:
            raise CheckpointError(f"{self.path}: no checkpoint {which!r}; there are: {', '.join(present)}, last, best")
        return present[which]

    def _best(self) -> str | None:
        last = self.checkpoint("last")
        step = json.loads((last / "state.json").read_text())["counters"]["best_step"]
        return None if step is None else f"step-{step:08d}"


def append_epoch(file: Path, record: dict[str, Any]) -> None:
    """Add one epoch's line to a log file."""
    with file.open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def drop_epochs_from(file: Path, epoch: int) -> None:
    """Cut off the lines of ``epoch`` and later ones: a resumed run writes them again.

    A last line without its end was torn by the death of the run that wrote it; it goes too.
    """
    if not file.exists():
        return
    whole = (line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n"))
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text("".join(line for line in whole if json.loads(line)["epoch"] < epoch))
    unfinished.replace(file)
