"""Training speed between two records: how fast, how much of the hardware is used, and where the time of a step goes."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, cast, get_args

import psutil
import torch

from vlatrack.tokens.batch import Batch
from vlatrack.training.process_group import Rule

Phase = Literal["data", "forward", "backward", "optimiser", "exchange", "metrics", "tracking"]
"""Parts of a step: waiting for data, the passes, clipping and the optimiser, what ranks send each other outside of the
passes, computing metrics, and the callbacks that record them."""

PHASES: tuple[Phase, ...] = get_args(Phase)

SPEEDS: Mapping[str, Rule] = {
    "samples_per_s": "sum",
    "tokens_per_s": "sum",
    "padding_share": "mean",
    "mfu": "mean",
    "step_time_s": "max",
    "data_wait_s": "max",
    **{f"{phase}_s": "max" for phase in PHASES if phase != "data"},
    "memory_mib": "max",
}
"""What `Throughput` measures, and how ranks are combined: rates add up, the slowest time and largest memory count."""

_MIB = 2**20
_MOST_MARKS = 1024

_Mark = tuple[Phase | None, float | torch.cuda.Event]


class Stopwatch:
    """Tells where the time goes: each moment belongs to the phase that was entered last, or to none.

    On a GPU it is the device's time: marks travel with the kernels, so nothing waits for them until a window is read,
    and what the host does meanwhile counts only as far as the device waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: deque[_Mark] = deque()
        self._spent = dict.fromkeys(PHASES, 0.0)
        self.enter(None)

    def enter(self, phase: Phase | None) -> None:
        """From now on the time belongs to ``phase``; None: it is not counted."""
        self._marks.append((phase, self._now()))
        if len(self._marks) > _MOST_MARKS:
            _add_up(self._marks, self._spent, wait=False)

    @contextmanager
    def within(self, phase: Phase | None) -> Iterator[None]:
        """The time inside the block belongs to ``phase``, the time after it to the phase before."""
        before = self._marks[-1][0]
        self.enter(phase)
        yield
        self.enter(before)

    def split(self) -> Callable[[], dict[Phase, float]]:
        """End the window and start the next; the result waits for the device to reach its end, and returns the seconds
        of each phase."""
        self.enter(self._marks[-1][0])
        marks, spent = self._marks, self._spent
        self._marks, self._spent = deque([marks[-1]]), dict.fromkeys(PHASES, 0.0)

        def seconds() -> dict[Phase, float]:
            _add_up(marks, spent, wait=True)
            return spent

        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _add_up(marks: deque[_Mark], spent: dict[Phase, float], *, wait: bool) -> None:
    """Add the time between marks to its phase, and drop all marks but the last of them; without ``wait`` only as far as
    the device has come."""
    while len(marks) > 1:
        (phase, begin), (_, end) = marks[0], marks[1]
        if isinstance(begin, float):
            elapsed = cast(float, end) - begin
        else:
            reached = cast(torch.cuda.Event, end)
            if wait:
                reached.synchronize()
            elif not reached.query():  # type: ignore[no-untyped-call]
                return
            elapsed = begin.elapsed_time(reached) / 1e3
        if phase is not None:
            spent[phase] += elapsed
        marks.popleft()


class Throughput:
    """Counts samples, tokens and arithmetic in a window of steps, and the time that the steps take.

    Args:
        flops_of: the floating-point operations of a batch's forward and backward pass; None: not counted.
        peak_flops: operations per second that the device can do; None: unknown, so that there is no MFU.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        flops_of: Callable[[Batch], float] | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self._device, self._process = device, psutil.Process()
        self._flops_of, self._peak_flops = flops_of, peak_flops
        self.restart()

    def restart(self) -> None:
        """Start a new window now."""
        self.watch = Stopwatch(self._device)
        self._clear()

    def _clear(self) -> None:
        self._steps, self._samples, self._tokens, self._positions, self._flops = 0, 0, 0, 0, 0.0

    def paused(self) -> AbstractContextManager[None]:
        """Leave the time inside the block out of the window."""
        return self.watch.within(None)

    def timed_data(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        """Yield the micro batches of each step; the time spent waiting for them counts as data."""
        while True:
            self.watch.enter("data")
            batches = next(steps, None)
            if batches is None:
                self.watch.enter(None)
                return
            yield batches

    def count(self, batches: Sequence[Batch]) -> None:
        """Count one step of these micro batches; padding is not counted as tokens."""
        self._steps += 1
        self._samples += sum(batch.rows for batch in batches if not batch.is_idle)
        self._tokens += sum(batch.tokens for batch in batches)
        self._positions += sum(batch.input_ids.numel() for batch in batches)
        if self._flops_of is not None:
            self._flops += sum(map(self._flops_of, batches))

    def close(self) -> Callable[[], dict[str, float]]:
        """End the window and start the next; the result waits for the device to finish the window's steps, and returns
        its speeds."""
        seconds, steps, samples, tokens = self.watch.split(), max(self._steps, 1), self._samples, self._tokens
        padding, flops, memory = 1 - tokens / max(self._positions, 1), self._flops, self._memory_bytes()
        self._clear()

        def speeds() -> dict[str, float]:
            by_phase = seconds()
            elapsed = max(sum(by_phase.values()), 1e-9)
            values = {"samples_per_s": samples / elapsed, "tokens_per_s": tokens / elapsed, "padding_share": padding}
            if self._peak_flops is not None:
                values["mfu"] = flops / elapsed / self._peak_flops
            values["step_time_s"] = elapsed / steps
            values |= {_name(phase): spent / steps for phase, spent in by_phase.items()}
            return values | {"memory_mib": memory / _MIB}

        return speeds

    def _memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return self._process.memory_info().rss


def _name(phase: Phase) -> str:
    return "data_wait_s" if phase == "data" else f"{phase}_s"
