"""The folder of a job, `<runs>/jobs/<name>-<time>-<four characters>`: what it is to do, its log, and the run that it
trains.

submitit keeps a pickle there, which the job loads. So it is for this user alone, whatever runs are: who could write
into it, or put another folder in its place, could execute anything as this user.
"""

import json
import os
import secrets
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from vlatrack.errors import SubmitError
from vlatrack.spec.base import Model
from vlatrack.tracking.privacy import open_private, write_private
from vlatrack.tracking.run_files import checked_runs_folder


class Order(Model):
    """What a job is to train: a new run of the experiment beside this order, or, with ``resume``, an old run."""

    format: Literal[1] = 1
    directory: Path
    """the working directory, from which the paths of the experiment lead"""
    runs: Path
    command: tuple[str, ...]
    """what the user has typed, for the run's manifest"""
    overrides: tuple[str, ...] = ()
    """of a new run: already part of the experiment, they name it; of an old one: changes to its settings"""
    resume: Path | None = None
    """the directory of the run to go on with"""


@dataclass(frozen=True)
class JobFolder:
    """The files of one job that are vlatrack's; submitit's stand beside them."""

    path: Path

    @classmethod
    def planned(cls, runs: Path, name: str) -> Self:
        """The folder of a new job, which `create` makes.

        Raises:
            VlatrackError: the runs folder cannot be written, others may exchange what is in it, or Slurm would take a
                part of its path for a pattern.
        """
        jobs = checked_runs_folder(runs) / "jobs"
        if "%" in str(jobs):
            raise SubmitError(f"{jobs}: Slurm gives % a meaning of its own; choose another --runs")
        for folder in (jobs.parent, jobs):
            if folder.exists() and _is_open_to_others(folder):
                raise SubmitError(
                    f"{folder}: others may write here, and could exchange what your job executes; "
                    f"chmod go-w {folder}, or, to share it, chmod +t {folder}"
                )
        return cls(jobs / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")

    @property
    def experiment(self) -> Path:
        """The experiment as it was when the job was submitted, with its overrides."""
        return self.path / "experiment.yaml"

    @property
    def _order(self) -> Path:
        return self.path / "order.json"

    @property
    def _run(self) -> Path:
        return self.path / "run.txt"

    @property
    def _starts(self) -> Path:
        return self.path / "starts.jsonl"

    def create(self, order: Order, experiment: str) -> None:
        """Make the folder with what the job is to do.

        Raises:
            SubmitError: it cannot be made or written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.mkdir(mode=0o700)
            write_private(self.experiment, experiment)
            write_private(self._order, order.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise SubmitError(
                f"{error.filename or self.path}: cannot be written ({error.strerror}); choose another --runs"
            ) from error

    def order(self) -> Order:
        """What the job is to do.

        Raises:
            SubmitError: the file is missing, damaged, or of a later vlatrack.
        """
        try:
            return Order.model_validate_json(self._order.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise SubmitError(f"{self._order}: cannot be read ({reason}); submit the job again") from error

    def note_run(self, run: Path) -> None:
        """Note the run that the job trains, so that it goes on with it however it was interrupted."""
        write_private(self._run, f"{run.resolve()}\n")

    def noted_run(self) -> Path | None:
        """The run that the job has begun; None before it has."""
        try:
            return Path(self._run.read_text(encoding="utf-8").removesuffix("\n"))
        except FileNotFoundError:
            return None

    def note_start(self, step: int) -> None:
        """Note that the job goes on from a step of its run; 0 is its beginning."""
        with os.fdopen(open_private(self._starts, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w") as file:
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            file.write(json.dumps({"time": now, "step": step}) + "\n")

    def starts(self) -> list[int]:
        """The step of each start of the job so far."""
        lines = self._starts.read_text(encoding="utf-8").splitlines() if self._starts.exists() else []
        return [json.loads(line)["step"] for line in lines]


def _is_open_to_others(folder: Path) -> bool:
    """Whether another user may rename what is in the folder; the sticky bit forbids that."""
    mode = folder.stat().st_mode
    return bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not mode & stat.S_ISVTX
