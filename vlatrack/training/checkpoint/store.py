"""The checkpoints of a run: written aside and renamed, found by name, pruned when newer ones exist."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from vlatrack.errors import CheckpointError
from vlatrack.training.checkpoint.contents import Snapshot, clear_write_errors, read_counters
from vlatrack.training.checkpoint.manifest import (
    FILES,
    TRAINING,
    Manifest,
    StoredFile,
    check_files,
    flush,
    inside,
    is_needed_to_resume_only,
    read_manifest,
    write_manifest,
)
from vlatrack.training.process_group import ProcessGroup

_STEP = "step-"
_REWOUND = "rewound"
_CHECKED = ".checked"
_BEST = "best.json"
_log = logging.getLogger(__name__)

T = TypeVar("T")


class CheckpointStore:
    """The folder ``checkpoints`` of a run. Only the process that holds the run's journal writes to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # --- reading -----------------------------------------------------------------------------------

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob(f"{_STEP}*") if (path / FILES).is_file())

    def find(self, which: str) -> Path:
        """``last``, ``best``, or the name of a checkpoint folder.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        present = {path.name: path for path in self.all()}
        if not present:
            raise CheckpointError(f"{self.folder}: no complete checkpoint yet")
        if which == "last":
            return present[max(present)]
        if which == "best":
            step = self.best_step
            if step is None:
                step = read_counters(present[max(present)]).get("best_step")
            which = max(present) if step is None else name_of(step)
        if which not in present:
            raise CheckpointError(
                f"{self.folder}: no checkpoint {which!r}; there are: {', '.join(present)}, last, best"
            )
        return present[which]

    def check(self, checkpoint: Path, *, training: bool = True) -> Manifest:
        """Verify the files of a checkpoint and return its manifest.

        Every file is hashed once; later calls only compare its size and modification time.

        Args:
            training: false leaves out the files that only a resume needs.

        Raises:
            CheckpointError: a file is missing, truncated or altered, or a later vlatrack wrote it.
        """
        manifest = read_manifest(checkpoint)
        names = [name for name in manifest.sha256 if training or not is_needed_to_resume_only(name)]
        found = _fingerprint(checkpoint, [*names, FILES])
        known = self._stamped(checkpoint)
        changed = [name for name, mark in found.items() if known.get(name) != mark]
        if FILES in changed:  # the digests, too, may be others
            changed = [FILES, *names]
        if changed:
            check_files(checkpoint, manifest, [name for name in changed if name != FILES])
            if os.access(self.folder, os.W_OK):  # a read-only folder is verified each time
                self._stamp(checkpoint, found if FILES in changed else known | found)
        return manifest

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint that `write_best` has named, as long as that exists; None if it has named none."""
        try:
            step = int(json.loads((self.folder / _BEST).read_text())["step"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{self.folder / _BEST}: damaged; remove it, or name another checkpoint") from error
        return step if (self.folder / name_of(step) / FILES).is_file() else None

    # --- writing -----------------------------------------------------------------------------------

    def recover(self) -> None:
        """Clean up after a kill: an unfinished folder, an old one moved aside, or one that was being deleted."""
        for aside in self.folder.glob(f".{_STEP}*.replaced"):
            target = self.folder / aside.name.removeprefix(".").removesuffix(".replaced")
            if (target / FILES).is_file():
                shutil.rmtree(aside)
            else:
                shutil.rmtree(target, ignore_errors=True)
                aside.rename(target)
        for unfinished in [*self.folder.glob(f".{_STEP}*"), *self.folder.glob(f"{_STEP}*")]:
            if unfinished.name.startswith(".") or not (unfinished / FILES).is_file():
                shutil.rmtree(unfinished)

    def write(self, snapshot: Snapshot, group: ProcessGroup) -> tuple[Path, Manifest | None]:
        """Write ``step-<number>`` and return its path, with its manifest on the main process. All ranks call this.

        An existing checkpoint of the same name is kept until the new one is complete.

        Raises:
            CheckpointError: the disk of a rank is full, or the folder cannot be written.
        """
        target = self.folder / name_of(snapshot.step)
        unfinished = self.folder / f".{target.name}.unfinished"
        is_main = group.is_main_process
        try:
            _together(group, lambda: _make_empty(unfinished) if is_main else None)
            parts = group.all_gather((snapshot.plans, snapshot.of_rank))
            plans, of_ranks = zip(*parts, strict=True)
            written = _together(group, lambda: snapshot.write_tensors(unfinished, plans, group.rank))
            files = {name: file for own in written for name, file in own.items()}

            def commit() -> Manifest | None:
                if not is_main:
                    return None
                snapshot.write_rest(unfinished, of_ranks)
                return self._commit(unfinished, target, files)

            return target, _together(group, commit)[group.rank]
        except BaseException:
            if is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _commit(self, unfinished: Path, target: Path, files: dict[str, StoredFile]) -> Manifest:
        with clear_write_errors(unfinished):
            manifest = write_manifest(unfinished, files)
            aside = self.folder / f".{target.name}.replaced"
            if target.exists():
                target.rename(aside)
            unfinished.rename(target)
            flush([self.folder])
            shutil.rmtree(aside, ignore_errors=True)
        self._stamp(target, _fingerprint(target, [*manifest.sha256, FILES]))
        return manifest

    def write_best(self, step: int | None) -> None:
        """Name the best checkpoint where that is found out later than its state is written; None: it is not."""
        file = self.folder / _BEST
        if step is None:
            file.unlink(missing_ok=True)
            return
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps({"step": step}) + "\n")
        unfinished.replace(file)

    def prune(self, *, keep_last: int, best_step: int | None, used: Collection[int] = ()) -> list[Path]:
        """Give up all but the last ``keep_last`` checkpoints, the best one, and those of the steps that are ``used``;
        ``delete`` removes what it returns."""
        obsolete = [path for path in self.all()[:-keep_last] if step_of(path) not in {best_step, *used}]
        for path in obsolete:
            (path / FILES).unlink()  # first, so that a kill leaves no checkpoint that looks complete
        return obsolete

    def delete(self, obsolete: list[Path]) -> None:
        """Remove the files of checkpoints that are no longer any; takes a while where they are large."""
        for path in obsolete:
            shutil.rmtree(path, ignore_errors=True)  # what is left, the next start removes
            (self.folder / _CHECKED / f"{path.name}.json").unlink(missing_ok=True)

    def set_aside_later(self, step: int, *, keep_last: int) -> None:
        """Move checkpoints after ``step`` into ``rewound``, since training writes new ones with these names.

        Only the newest ``keep_last`` are kept there.
        """
        rewound = self.folder / _REWOUND
        for path in self.all():
            if step_of(path) > step:
                kept = rewound / path.name
                kept.parent.mkdir(exist_ok=True)
                shutil.rmtree(kept, ignore_errors=True)  # from an earlier rewind
                path.rename(kept)
        for path in sorted(rewound.glob(f"{_STEP}*"))[:-keep_last]:
            shutil.rmtree(path)

    def _stamped(self, checkpoint: Path) -> dict[str, list[int]]:
        """The files that have been verified, as they were then; none if the stamp is damaged, as by a power cut."""
        try:
            known = json.loads((self.folder / _CHECKED / f"{checkpoint.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _stamp(self, checkpoint: Path, files: dict[str, list[int]]) -> None:
        """Remember which files are whole. Where that cannot be written, they are verified again the next time."""
        stamp = self.folder / _CHECKED / f"{checkpoint.name}.json"
        unfinished = stamp.with_suffix(f".{os.getpid()}")  # renamed: a kill must not leave half of it
        try:
            stamp.parent.mkdir(exist_ok=True)
            unfinished.write_text(json.dumps(files))
            unfinished.replace(stamp)
        except OSError as error:
            _log.warning("%s: cannot be written (%s); %s is verified each time", stamp, error.strerror, checkpoint.name)


def name_of(step: int) -> str:
    """The folder name of the checkpoint after ``step`` optimiser steps."""
    return f"{_STEP}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The number of optimiser steps before a checkpoint, from its folder name."""
    return int(checkpoint.name.removeprefix(_STEP))


def _fingerprint(checkpoint: Path, names: list[str]) -> dict[str, list[int]]:
    """Size and modification time of each file; while they are the same, the file is taken as unchanged."""
    found = {}
    for name in names:
        file = inside(checkpoint, name)
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; not a complete checkpoint")
        stat = file.stat()
        found[name] = [stat.st_size, stat.st_mtime_ns]
    return found


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with clear_write_errors(folder):
        (folder / TRAINING).mkdir(parents=True)


def _together(group: ProcessGroup, work: Callable[[], T]) -> list[T]:
    """What the work of each rank has returned, by rank. All ranks call this.

    Raises:
        CheckpointError: on all ranks, with the reason of the first whose work has raised one.
    """
    mine: tuple[list[T], str | None]
    cause = None
    try:
        mine = [work()], None
    except CheckpointError as error:
        mine, cause = ([], str(error)), error
    done = group.all_gather(mine)
    problem = next((problem for _, problem in done if problem is not None), None)
    if problem is not None:
        raise CheckpointError(problem) from cause
    return [result for results, _ in done for result in results]
