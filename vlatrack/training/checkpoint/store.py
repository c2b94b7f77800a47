"""The checkpoints of a run: saved atomically, found by name, pruned when newer ones exist."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vlatrack.errors import CheckpointError
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import (
    FILES,
    Manifest,
    TrainingParts,
    check_files,
    inside,
    read_counters,
    read_manifest,
)
from vlatrack.training.state import TrainState

_STEP = "step-"
_REWOUND = "rewound"
_CHECKED = ".checked"
_log = logging.getLogger(__name__)


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
            step = read_counters(present[max(present)]).get("best_step")
            which = max(present) if step is None else name_of(step)
        if which not in present:
            raise CheckpointError(
                f"{self.folder}: no checkpoint {which!r}; there are: {', '.join(present)}, last, best"
            )
        return present[which]

    def check(self, checkpoint: Path) -> Manifest:
        """Verify the files of a checkpoint and return its manifest.

        Every file is hashed once; later calls only compare its size and modification time.

        Raises:
            CheckpointError: a file is missing, truncated or altered, or a later vlatrack wrote it.
        """
        manifest = read_manifest(checkpoint)
        stamp = self.folder / _CHECKED / f"{checkpoint.name}.json"
        # Compared as text: after a power cut the stamp may be empty.
        if not stamp.is_file() or stamp.read_bytes() != _fingerprint(checkpoint, manifest):
            check_files(checkpoint, manifest)
            if os.access(self.folder, os.W_OK):  # a read-only folder is verified each time
                self._stamp(checkpoint, manifest)
        return manifest

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

    def save(self, parts: TrainingParts, state: TrainState) -> tuple[Path, Manifest | None]:
        """Write ``step-<number>`` and return its path, with its manifest on the main process. All ranks call this.

        An existing checkpoint of the same name is kept until the new one is complete.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        target = self.folder / name_of(state.step)
        tensors = parts.gather(state)
        if not parts.group.is_main_process:
            return target, None
        unfinished, aside = self.folder / f".{target.name}.{os.getpid()}", self.folder / f".{target.name}.replaced"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            unfinished.mkdir(parents=True)
            manifest = parts.write(unfinished, state, tensors)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if target.exists():
            target.rename(aside)
        unfinished.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
        self._stamp(target, manifest)
        return target, manifest

    def prune(self, *, keep_last: int, best_step: int | None) -> None:
        """Delete all but the last ``keep_last`` checkpoints and the best one."""
        for path in self.all()[:-keep_last]:
            if best_step is None or path.name != name_of(best_step):
                self._delete(path)

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

    def _delete(self, path: Path) -> None:
        (path / FILES).unlink()  # first, so that a kill leaves no checkpoint that looks complete
        shutil.rmtree(path)
        (self.folder / _CHECKED / f"{path.name}.json").unlink(missing_ok=True)

    def _stamp(self, checkpoint: Path, manifest: Manifest) -> None:
        """Remember that a checkpoint is whole. Where that cannot be written, it is verified again the next time."""
        stamp = self.folder / _CHECKED / f"{checkpoint.name}.json"
        unfinished = stamp.with_suffix(f".{os.getpid()}")  # renamed: a kill must not leave half of it
        try:
            stamp.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(_fingerprint(checkpoint, manifest))
            unfinished.replace(stamp)
        except OSError as error:
            _log.warning("%s: cannot be written (%s); %s is verified each time", stamp, error.strerror, checkpoint.name)


class RunCheckpoints:
    """Saves and restores a running training (implements ``vlatrack.training.loop.Checkpoints``)."""

    def __init__(
        self, store: CheckpointStore, parts: TrainingParts, *, keep_last: int, callbacks: Sequence[Callback]
    ) -> None:
        self._store, self._parts, self._keep_last, self._callbacks = store, parts, keep_last, callbacks

    def save(self, state: TrainState) -> None:
        path, manifest = self._store.save(self._parts, state)
        if manifest is not None:
            for callback in self._callbacks:
                callback.on_checkpoint(state, path, manifest.policy_sha256)
            self._store.prune(keep_last=self._keep_last, best_step=state.best_step)

    @property
    def last_name(self) -> str | None:
        present = self._store.all()
        return present[-1].name if present else None

    def restore_last(self) -> TrainState:
        """Restore the training from the last checkpoint; there must be one."""
        return self._parts.restore(self._store.find("last"))


def name_of(step: int) -> str:
    """The folder name of the checkpoint after ``step`` optimiser steps."""
    return f"{_STEP}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The number of optimiser steps before a checkpoint, from its folder name."""
    return int(checkpoint.name.removeprefix(_STEP))


def _fingerprint(checkpoint: Path, manifest: Manifest) -> bytes:
    """Size and modification time of each file; while they are the same, the file is taken as unchanged."""
    found = {}
    for name in [*manifest.sha256, FILES]:
        file = inside(checkpoint, name)
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; not a complete checkpoint")
        stat = file.stat()
        found[name] = [stat.st_size, stat.st_mtime_ns]
    return json.dumps(found).encode()
