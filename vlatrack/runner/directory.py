"""The files of a run, below ``runs/<experiment>/<run-id>/``."""

import os
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Self

from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DISK_IS_FULL, CheckpointError, RunError, SpecError
from vlatrack.metrics.schema import TRAIN
from vlatrack.reports.epoch_log import LOG_FILES
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import Scalar
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.tracking.journal.history import last_start
from vlatrack.tracking.privacy import open_private, write_private
from vlatrack.tracking.run_files import RunFiles, new_run_directory, resolved_path
from vlatrack.training.checkpoint.manifest import (
    FILES,
    Manifest,
    check_files,
    is_needed_to_resume_only,
    read_manifest,
)
from vlatrack.training.checkpoint.store import CheckpointStore


def store_of(runs: Path) -> TokenStore:
    """What is computed once from datasets, for the runs below a folder."""
    return TokenStore(runs / ".cache" / "data")


class RunDirectory(RunFiles):
    """The paths of everything that belongs to one run; `RunFiles` has those of its tracking."""

    @classmethod
    def create(cls, runs: Path, spec: ExperimentSpec) -> Self:
        """A new directory, named after the time and four random characters, with the resolved spec in it.

        Raises:
            SpecError: it cannot be created below ``runs``.
        """
        path = None
        try:
            path = new_run_directory(runs / spec.name)
            directory = cls(path)
            write_private(directory.spec_file, dump_spec(spec))
        except OSError as error:
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)
            place = path or error.filename or runs / spec.name
            raise SpecError(f"{place}: cannot be created ({error.strerror}); choose another --runs") from error
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            SpecError: ``path`` is not a run directory.
        """
        if (path / FILES).is_file():
            raise SpecError(f"{path}: a checkpoint or an exported policy, not a run; init_from={path} starts a new run")
        if not (path / "spec.yaml").is_file():
            raise SpecError(f"{path}: not a run directory (it has no spec.yaml); give runs/<experiment>/<run-id>")
        return cls(path)

    @classmethod
    def latest(cls, runs: Path) -> Self:
        """The run that was started last among all experiments below ``runs``.

        Raises:
            SpecError: there is none.
        """
        found = [path for path in runs.glob("*/*") if path.name[:1].isdigit() and (path / "spec.yaml").is_file()]
        if not found:
            raise SpecError(f"{runs}: no run in it yet; start one with vlatrack run EXPERIMENT.yaml")
        return cls(max(found, key=lambda path: path.name))

    @property
    def path(self) -> Path:
        return self.run_dir

    @property
    def run_id(self) -> str:
        return self.run_dir.name

    @property
    def began(self) -> datetime:
        """When the directory of a run that was started here was made, in local time, as its id tells it."""
        return datetime.strptime("-".join(self.run_id.split("-")[:2]), "%Y%m%d-%H%M%S")  # local

    @property
    def uid(self) -> str:
        """The run's name across machines and trackers, at most 64 characters."""
        return f"{self.run_dir.parent.name[:40]}-{self.run_id}"

    @property
    def spec_file(self) -> Path:
        return self.run_dir / "spec.yaml"

    @property
    def manifest_file(self) -> Path:
        return self.run_dir / "manifest.json"

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.run_dir / "checkpoints")

    @property
    def tokenizer(self) -> Path:
        """The folder of the image tokenizer."""
        return self.run_dir / "tokenizer"

    @property
    def evaluation(self) -> Path:
        return self.run_dir / "evaluation"

    @property
    def action_errors(self) -> Path:
        """The CSV table of L1 errors by split, epoch, route, chunk step and action dimension."""
        return self.evaluation / "action_errors.csv"

    @property
    def report(self) -> Path:
        return self.run_dir / "report"

    @property
    def store(self) -> TokenStore:
        """What is computed once from datasets, shared by all runs below the same folder."""
        return store_of(self.runs)

    @property
    def log_files(self) -> dict[str, Path]:
        """The documented log file of each split."""
        return {split: self.run_dir / name for split, (name, _) in LOG_FILES.items()}

    @property
    def has_epochs(self) -> bool:
        """Whether an epoch has been logged."""
        return self.log_files[TRAIN].exists()

    def rank_error(self, rank: int | str) -> Path:
        """The file in which a rank other than 0 writes why it failed."""
        return self.run_dir / f"error-rank{rank}.txt"

    def rank_stopped(self, rank: int | str) -> Path:
        """The file in which a rank other than 0 writes which signal or lost rank ended it."""
        return self.run_dir / f"stopped-rank{rank}.txt"

    def spec(self, overrides: Iterable[str] = ()) -> ExperimentSpec:
        """The run's spec, with ``key=value`` overrides applied; SpecError if one is wrong."""
        return load_spec(self.spec_file, tuple(overrides), stored=True)

    def settings_at_start(self) -> Mapping[str, Scalar]:
        """The flat settings with which the run was last started or resumed, from its journal."""
        start = last_start(self.journal)
        return {} if start is None else start.data["params"]

    def tags_at_start(self) -> Mapping[str, str]:
        """The tags with which the run was last started or resumed."""
        start = last_start(self.journal)
        return {} if start is None else start.data["tags"]

    def replace_spec(self, spec: ExperimentSpec) -> None:
        """Replace the spec, atomically, by the one that the run resumes with."""
        unfinished = self.spec_file.with_suffix(".partial")
        write_in_run(unfinished, dump_spec(spec))
        unfinished.replace(self.spec_file)


def write_in_run(file: Path, text: str) -> None:
    """Write a file of a run, for this user alone.

    Raises:
        RunError: the disk is full, or the file cannot be written.
    """
    try:
        with os.fdopen(open_private(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        remedy = "free some disk space" if error.errno in DISK_IS_FULL else "make it writable"
        raise RunError(f"{file}: cannot be written ({error.strerror}); {remedy}") from error


def find_checkpoint(place: Path, which: str | None = None, *, default: str) -> tuple[Path, RunDirectory | None]:
    """A checkpoint, and the run that it belongs to; None for an exported policy.

    Args:
        place: a run directory, one of its checkpoints, or an exported policy.
        which: of a run: ``last``, ``best`` or the name of a checkpoint folder; None: ``default``.

    Raises:
        VlatrackError: there is none, or ``which`` is given for a folder that is a checkpoint itself.
    """
    folder = resolved_path(place)
    if not (folder / FILES).is_file():
        run = RunDirectory.open(place)
        return run.checkpoints.find(which or default), run
    if which is not None:
        raise CheckpointError(f"{place}: is a checkpoint itself; leave out {which}")
    run_dir = folder.parent.parent
    is_of_a_run = folder.parent.name == "checkpoints" and (run_dir / "spec.yaml").is_file()
    return folder, RunDirectory.open(run_dir) if is_of_a_run else None


def verify_checkpoint(checkpoint: Path, run: RunDirectory | None, *, training: bool = True) -> Manifest:
    """The manifest of a checkpoint from ``find_checkpoint``, after its files have been verified.

    Args:
        training: false leaves out the files that only a resume needs.

    Raises:
        CheckpointError: a file is missing, truncated or altered, or a later vlatrack wrote it.
    """
    if run is not None:
        return run.checkpoints.check(checkpoint, training=training)
    manifest = read_manifest(checkpoint)
    check_files(checkpoint, manifest, [n for n in manifest.sha256 if training or not is_needed_to_resume_only(n)])
    return manifest
