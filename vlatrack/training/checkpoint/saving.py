"""Saving while the training goes on: copies at once, files in a thread beside it, the rest when these are complete."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from vlatrack.errors import CheckpointError
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.manifest import Manifest
from vlatrack.training.checkpoint.shards import HostCopies
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.process_group import RankLostError
from vlatrack.training.state import TrainState


@dataclass(frozen=True)
class _Saving:
    """A checkpoint that is being written."""

    state: TrainState
    written: Future[tuple[Path, Manifest | None]]


class RunCheckpoints:
    """Saves and restores a running training (implements ``vlatrack.training.loop.Checkpoints``).

    All ranks make one together. At most one checkpoint is being written at a time. That it is written is told to the
    callbacks, and older ones are deleted, in the thread that calls these methods.
    """

    def __init__(
        self,
        store: CheckpointStore,
        parts: TrainingParts,
        *,
        keep_last: int,
        callbacks: Sequence[Callback],
        asynchronous: bool = True,
        used: Callable[[], Collection[int]] = tuple,
    ) -> None:
        """
        Args:
            used: the steps of checkpoints that somebody else needs, and that are therefore kept.
        """
        self._store, self._parts, self._keep_last, self._callbacks = store, parts, keep_last, callbacks
        self._used = used
        self._group = parts.group.duplicate()  # the training uses the other one meanwhile
        self._copies = (HostCopies(), HostCopies()) if asynchronous else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: _Saving | None = None
        self._deleted: Future[None] | None = None

    def save(self, state: TrainState) -> None:
        """Begin a checkpoint; the training may go on when this returns."""
        self.wait()
        snapshot = self._parts.capture(state, self._copies)
        self._saving = _Saving(copy(state), self._thread.submit(self._store.write, snapshot, self._group))
        if self._copies is None:
            self.wait()

    def poll(self) -> None:
        """Finish the checkpoint that is being written, if all its files are there; else do nothing."""
        # The others learn of a failure where they next wait, or by the end of the main process.
        if self._parts.group.is_main_process and self._saving is not None and self._saving.written.done():
            self._finish(self._saving)

    def wait(self) -> None:
        """Finish the checkpoint that is being written, if there is one.

        Raises:
            CheckpointError: it could not be written; on the main process.
            RankLostError: the same, on the others.
        """
        if self._saving is not None:
            self._finish(self._saving)
        if self._deleted is not None:
            self._deleted.result()

    def _finish(self, saving: _Saving) -> None:
        try:
            path, manifest = saving.written.result()
        except CheckpointError as error:
            self._saving = None
            if self._parts.group.is_main_process:
                raise
            raise RankLostError(f"the main process ends ({error})") from None
        self._saving = None
        if manifest is not None:
            for callback in self._callbacks:
                callback.on_checkpoint(saving.state, path, manifest.policy_sha256)
            self.prune(saving.state.best_step)

    def prune(self, best_step: int | None) -> None:
        """Begin to delete the checkpoints that are not needed any more. Only the main process calls this."""
        obsolete = self._store.prune(keep_last=self._keep_last, best_step=best_step, used=self._used())
        self._deleted = self._thread.submit(self._store.delete, obsolete)

    @property
    def last_name(self) -> str | None:
        present = self._store.all()
        return present[-1].name if present else None

    def restore_last(self) -> TrainState:
        """Restore the training from the last checkpoint; there must be one."""
        self.wait()
        last = self._store.find("last")
        if self._parts.group.is_main_process:
            self._store.check(last)
        return self._parts.restore(last)
