"""Batches of samples, assembled in this process or in others."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from vlatrack.data.samples import Samples
from vlatrack.data.streaming import StreamedSamples, UnencodedBatch
from vlatrack.data.worker_watch import NOTHING, Places, WorkerWatch
from vlatrack.errors import VlatrackError
from vlatrack.tokens.batch import Batch

Numbers = Sequence[int] | NDArray[np.int64]
"""Of the rows of a batch."""


def batches_by_group(
    numbers: Iterable[int], group_of: Callable[[int], str], *, batch_size: int
) -> dict[str, list[list[int]]]:
    """Sample indices in batches that each hold samples of one group, by group, in the order in which these occur."""
    members: dict[str, list[int]] = {}
    for number in numbers:
        members.setdefault(group_of(number), []).append(number)
    return {
        group: [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
        for group, own in members.items()
    }


def load_batches(
    samples: Samples,
    order: Iterable[Numbers],
    *,
    workers: int = 0,
    pin: bool = False,
    length_multiple: int = 1,
    watch: WorkerWatch | None = None,
) -> Iterator[Batch]:
    """The batches of ``order``, assembled in ``workers`` processes, or in this one if 0.

    Args:
        watch: is told where each worker is.
        pin: in pinned memory, from which a GPU copies without waiting.
        length_multiple: the length of each batch is rounded up to such a multiple.
    """
    loader: DataLoader[_Loaded] = DataLoader(
        _Batches(samples, length_multiple, None if watch is None else watch.places),  # type: ignore[arg-type]  # a map-style dataset by its method
        batch_size=None,  # each "index" is the numbers of a whole batch
        sampler=order,
        num_workers=workers,
        pin_memory=pin,
        # A generator of its own: the default would draw from the one that dropout uses, and a resumed run,
        # which creates a new iterator, would get other dropout masks than the uninterrupted one.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_training,
    )
    return map(partial(_ready, samples), iter(loader))


_Loaded = Batch | UnencodedBatch | VlatrackError
"""What a worker hands over. An error is no exception there: torch would tell of it with a traceback of the worker."""


def _ready(samples: Samples, loaded: _Loaded) -> Batch:
    """The batch, with the ids of images that were to be encoded here; raises what a worker has met."""
    if isinstance(loaded, VlatrackError):
        raise type(loaded)(*loaded.args)  # not itself: it would be in a frame that its own traceback keeps
    if isinstance(loaded, UnencodedBatch):
        assert isinstance(samples, StreamedSamples)
        return samples.encoded(loaded)
    return loaded


@dataclass(frozen=True)
class _Batches:
    """Batches by the numbers of their rows, as torch's DataLoader asks for them."""

    samples: Samples
    length_multiple: int
    places: Places | None

    def __getitem__(self, numbers: Numbers) -> _Loaded:
        if self.places is None or not len(numbers):
            return self._load(numbers)
        self.places.note(int(numbers[0]))
        try:
            return self._load(numbers)
        finally:
            self.places.note(NOTHING)

    def _load(self, numbers: Numbers) -> _Loaded:
        samples = self.samples
        try:
            if isinstance(samples, StreamedSamples):
                return samples.unencoded(numbers, length_multiple=self.length_multiple)
            return samples.batch(numbers, length_multiple=self.length_multiple)
        except VlatrackError as error:
            return error


def _leave_signals_to_the_training(worker: int) -> None:
    """Ctrl-C and Slurm reach the workers as well; the last step before a checkpoint still needs them.

    They end with the iterator, or soon after the process that trains.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
