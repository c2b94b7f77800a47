"""A torch profiler trace of some training steps, as an artifact of the run."""

from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from vlatrack.errors import SpecError
from vlatrack.tracking.run import TrackedRun
from vlatrack.training.callback import Callback
from vlatrack.training.state import TrainState


class StepProfiler(Callback):
    """Profiles the steps from the first to the last of ``steps`` in this process, and logs the trace: gzipped JSON,
    which Perfetto and chrome://tracing show."""

    def __init__(self, run_dir: Path, tracked: TrackedRun, steps: tuple[int, int] | None) -> None:
        """``steps`` of None are none."""
        self._tracked, (self._first, self._last) = tracked, steps or (0, 0)
        self._file = run_dir / "profile" / f"steps-{self._first}-{self._last}.json.gz"
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._profile is not None:  # the run ended before the last of the steps
            self._stop()

    def on_train_start(self, state: TrainState, total_steps: int, epochs: int) -> None:
        """
        Raises:
            SpecError: the training has fewer steps.
        """
        if self._last > total_steps:
            raise SpecError(
                f"train.profile.steps: [{self._first}, {self._last}], but the training ends with step {total_steps}"
            )
        self._start_before(state.step + 1)

    def on_step(self, state: TrainState) -> None:
        if self._profile is not None and state.step >= self._last:
            self._file.parent.mkdir(exist_ok=True)
            self._stop().export_chrome_trace(str(self._file))
            self._tracked.log_artifact(self._file, name=f"profile/{self._file.name}")
        self._start_before(state.step + 1)

    def _start_before(self, step: int) -> None:
        if step == self._first and self._profile is None:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu], record_shapes=True)
            self._profile.start()

    def _stop(self) -> profile:
        stopped, self._profile = self._profile, None
        assert stopped is not None, "it has been started"
        stopped.stop()
        return stopped
