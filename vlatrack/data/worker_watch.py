"""Which sample a worker of a DataLoader was reading when it died.

A worker that the system kills, mostly since memory is short, says nothing any more. So each writes down where it is, in
memory that it shares with the process that trains.
"""

import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from typing import Generic, Protocol, TypeVar

from torch.utils.data import get_worker_info

from vlatrack.errors import DataError

_Sample = TypeVar("_Sample")
_Sample_co = TypeVar("_Sample_co", covariant=True)

NOTHING = -1  # is read at the moment
_UNTIL_TOLD_S = 1.0
"""A process that dies closes its connections a moment before the system tells of it, which ends the waiting."""
_DEATH = re.compile(
    r"DataLoader worker \(pid (?P<pid>\d+)\) "
    r"(?:is killed by signal: (?P<signal>.+?)\.|exited unexpectedly with exit code (?P<code>\d+))"
)
"""In what torch raises from its handler of SIGCHLD."""


class Samples(Protocol[_Sample_co]):
    """A map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> _Sample_co: ...


class Places:
    """Where the workers of a DataLoader are, in memory that they share with the process that trains."""

    def __init__(self, workers: int) -> None:
        # Of each worker its process and the sample that it reads; 8 bytes are written at once, so no lock is needed.
        self.pids, self.numbers = RawArray("q", max(1, workers)), RawArray("q", max(1, workers))

    def note(self, number: int) -> None:
        """Note that this worker begins to read a sample, or has read it; outside of a worker nothing is noted."""
        info = get_worker_info()
        if info is not None:
            self.numbers[info.id], self.pids[info.id] = number, os.getpid()


class WatchedSamples(Generic[_Sample]):
    """Samples of which is noted which one a worker reads."""

    def __init__(self, samples: Samples[_Sample], places: Places) -> None:
        self._samples, self._places = samples, places

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int, /) -> _Sample:
        self._places.note(number)
        try:
            return self._samples[number]
        finally:
            self._places.note(NOTHING)


class WorkerWatch:
    """Watches the workers of one DataLoader, whose dataset is `watched(samples)`, while `explaining_deaths`.

    A dataset that reads several samples at once notes each in `places` itself.
    """

    def __init__(self, workers: int, describe: Callable[[int], str]) -> None:
        """
        Args:
            workers: of the DataLoader.
            describe: names a sample by its number, with its episode; called in the process that trains.
        """
        self.places, self._describe = Places(workers), describe

    def watched(self, samples: Samples[_Sample]) -> WatchedSamples[_Sample]:
        """The samples, which are noted while a worker reads them."""
        return WatchedSamples(samples, self.places)

    @contextmanager
    def explaining_deaths(self) -> Iterator[None]:
        """Around all that is done with the batches, since torch tells of a death wherever the main thread is then.

        Raises:
            DataError: a worker has died; the message names what that was reading.
        """
        try:
            with self._explaining():
                yield
        except BaseException as error:
            # Its traceback would keep the iterator over the batches, and so the workers that still live. These ignore
            # signals, so the end of this process would wait for them forever.
            for told in (error, error.__cause__):
                if told is not None:
                    traceback.clear_frames(told.__traceback__)
            raise

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._explain(error)
            raise
        except (OSError, EOFError) as error:  # a batch cannot be had from a worker that dies at this moment
            try:
                time.sleep(_UNTIL_TOLD_S)
            except RuntimeError as told:
                self._explain(told)
                raise
            raise error from None

    def _explain(self, error: RuntimeError) -> None:
        """Raise DataError if it tells of a worker's death."""
        told = _DEATH.search(str(error.__cause__)) or _DEATH.search(str(error))
        if told is None or int(told["pid"]) not in self.places.pids:
            return
        number = self.places.numbers[list(self.places.pids).index(int(told["pid"]))]
        place = "between two samples" if number == NOTHING else f"while it read {self._describe(number)}"
        how = f"was killed by a signal ({told['signal']})" if told["signal"] else f"ended with code {told['code']}"
        raise DataError(
            f"a worker that reads data {how} {place}; if memory is short, use fewer train.workers, else look at that "
            "episode"
        ) from error
