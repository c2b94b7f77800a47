"""Training speed between two records, and the share of it spent waiting for data."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil
import torch

from vlatrack.tokens.batch import Batch
from vlatrack.training.process_group import Rule

SPEEDS: Mapping[str, Rule] = {
    "samples_per_s": "sum",
    "tokens_per_s": "sum",
    "step_time_s": "max",
    "data_wait_s": "max",
    "memory_mib": "max",
}
"""What `Throughput` measures, and how ranks are combined: rates add up, the slowest time and largest memory count."""

_MIB = 2**20


class Throughput:
    """Counts samples and tokens in a window of steps, and the time that the steps take.

    The time inside `paused` (checkpoints) is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        self.restart()

    def restart(self) -> None:
        """Start a new window now."""
        self._started = time.perf_counter()
        self._waited, self._steps, self._samples, self._tokens = 0.0, 0, 0, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out of the window."""
        self._synchronize()
        begin = time.perf_counter()
        yield
        self._started += time.perf_counter() - begin

    def timed_data(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the micro batches of each step; the time spent waiting for them counts as data wait."""
        while True:
            asked = time.perf_counter()
            batches = next(steps, None)
            self._waited += time.perf_counter() - asked
            if batches is None:
                return
            yield batches

    def count(self, batches: Sequence[Batch]) -> None:
        """Count one step of these micro batches; padding is not counted as tokens."""
        self._steps += 1
        self._samples += sum(batch.rows for batch in batches if not batch.is_idle)
        self._tokens += sum(batch.tokens for batch in batches)

    def take(self) -> dict[str, float]:
        """The window's speeds, after waiting for the device to finish its steps; starts the next window."""
        self._synchronize()
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        speeds = {
            "samples_per_s": self._samples / elapsed,
            "tokens_per_s": self._tokens / elapsed,
            "step_time_s": elapsed / max(self._steps, 1),
            "data_wait_s": self._waited / max(self._steps, 1),
            "memory_mib": self._memory_bytes() / _MIB,
        }
        self.restart()
        return speeds

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._process.memory_info().rss
