"""A worker that dies is an error with the episode that it was reading."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

import pytest
import torch
from torch.utils.data import DataLoader

from vlatrack.data.loading import load_batches
from vlatrack.data.worker_watch import WorkerWatch
from vlatrack.errors import DataError

SAMPLES = 64


class Samples:
    """Numbers, of which one does something to the process that reads it."""

    def __init__(self, fatal: int | None = None, act: Callable[[], None] = lambda: None) -> None:
        self._fatal, self._act = fatal, act

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, number: int, /) -> torch.Tensor:
        if number == self._fatal:
            self._act()
        return torch.tensor(number)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(7)


def fail() -> None:
    raise RuntimeError("no such tensor")


def read(samples: Samples, workers: int, *, start_method: str | None = None) -> list[int]:
    """All samples in their order, through a watched DataLoader."""
    watch = WorkerWatch(workers, lambda number: f"step {number % 10} of episode {number // 10} of demos")
    loader = DataLoader(watch.watched(samples), batch_size=4, num_workers=workers, multiprocessing_context=start_method)
    with watch.explaining_deaths():
        return [int(number) for batch in loader for number in batch]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_of_workers_that_live_come_through(workers: int) -> None:
    assert read(Samples(), workers) == list(range(SAMPLES))


@pytest.mark.parametrize(("workers", "fatal", "place"), [(1, 41, "step 1 of episode 4"), (2, 0, "step 0 of episode 0")])
def test_a_worker_that_is_killed_is_told_with_what_it_was_reading(workers: int, fatal: int, place: str) -> None:
    with pytest.raises(DataError) as caught:
        read(Samples(fatal, kill), workers)
    message = str(caught.value)
    assert message.startswith(
        f"a worker that reads data was killed by a signal (Killed) while it read {place} of demos; "
    )
    assert "\n" not in message


def test_a_worker_that_leaves_by_itself_is_told_as_well() -> None:
    with pytest.raises(DataError, match=r"worker that reads data ended with code 7 while it read step 1 of"):
        read(Samples(41, leave), 1)


@pytest.mark.slow
def test_a_spawned_worker_shares_the_same_memory() -> None:
    with pytest.raises(DataError, match="while it read step 3 of episode 2 of demos"):
        read(Samples(23, kill), 1, start_method="spawn")


def test_an_error_of_a_sample_is_no_death() -> None:
    with pytest.raises(RuntimeError, match="no such tensor"):
        read(Samples(41, fail), 1)
    with pytest.raises(RuntimeError, match=r"^no such tensor$"):
        read(Samples(41, fail), 0)


def test_a_death_while_the_training_computes_is_told_as_well() -> None:
    watch, computes = WorkerWatch(1, "sample {}".format), multiprocessing.Event()

    def die_later() -> None:
        computes.wait(60)
        kill()

    loader = DataLoader(watch.watched(Samples(9, die_later)), batch_size=4, num_workers=1)

    def train() -> None:
        with watch.explaining_deaths():
            batches = iter(loader)
            next(batches)
            computes.set()
            threading.Event().wait(60)  # as a long step; torch interrupts it

    with pytest.raises(DataError, match=r"a signal .* while it read sample 9; "):
        train()


@pytest.mark.parametrize(
    "error", [RuntimeError("out of memory"), OSError("no such file"), DataError("damaged")], ids=repr
)
def test_what_else_goes_wrong_meanwhile_stays_what_it_is(error: Exception) -> None:
    watch = WorkerWatch(1, str)
    loader = DataLoader(watch.watched(Samples()), batch_size=4, num_workers=1)

    def train() -> None:
        with watch.explaining_deaths():
            for _ in loader:
                raise error

    with pytest.raises(type(error), match=str(error)):
        train()


def test_a_worker_that_dies_over_a_batch_is_told_with_the_batchs_first_sample() -> None:
    class Batches:
        def batch(self, numbers: list[int], *, length_multiple: int) -> list[int]:
            return kill() if 41 in numbers else numbers

    watch = WorkerWatch(1, "a batch with sample {}".format)
    order = [[3, 5], [7, 41], [1]]
    with pytest.raises(DataError, match="while it read a batch with sample 7; "), watch.explaining_deaths():
        list(load_batches(Batches(), order, workers=1, watch=watch))
    assert list(load_batches(Batches(), order[::2], workers=1, watch=watch)) == order[::2]
