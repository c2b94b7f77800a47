"""What happens after a step that was not taken because its loss or gradient was not finite."""

from collections.abc import Sequence
from typing import Literal

import torch

from vlatrack.errors import NonFiniteError
from vlatrack.training.callback import Callback
from vlatrack.training.optimisation import StepResult
from vlatrack.training.state import TrainState


class RollbackError(Exception):
    """Training is to return to the last checkpoint; ``step`` is the one whose batch it then leaves out."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class NonFiniteGuard:
    """Notices steps that were not taken: at once on a CPU, on a GPU when it is waited for anyway.

    `train_step` has kept such a step from the weights already, so that noticing it later does no harm.
    """

    def __init__(
        self, device: torch.device, action: Literal["halt", "skip", "rollback"], callbacks: Sequence[Callback]
    ) -> None:
        self._action, self._callbacks = action, callbacks
        self._at_once = device.type == "cpu"
        self._none = torch.zeros((), dtype=torch.int64, device=device)
        self._count, self._first = self._none, self._none  # steps not taken since the last check, and which came first
        self._loss: torch.Tensor | None = None

    def note(self, state: TrainState, result: StepResult) -> None:
        """Take in the result of step ``state.step``.

        Raises:
            NonFiniteError, RollbackError: as ``check``.
        """
        bad = ~result.finite
        self._first = torch.where(bad & (self._count == 0), state.step, self._first)
        self._count = self._count + bad
        self._loss = result.loss
        if self._at_once:
            self.check(state)

    def check(self, state: TrainState) -> None:
        """Count what was not taken, and act on it.

        Raises:
            NonFiniteError: the action is ``halt``.
            RollbackError: the action is ``rollback``.
        """
        count, first = int(self._count), int(self._first)
        if not count:
            return
        self._count, self._first = self._none, self._none
        state.skipped_steps += count
        what = f"steps {first} and {count - 1} more" if count > 1 else f"step {first}"
        reason = f"{what}: loss or gradient is not finite"
        if count == 1 and first == state.step and self._loss is not None:
            reason += f" (loss {self._loss.item():g})"
        for callback in self._callbacks:
            callback.on_non_finite(first, reason)
        if self._action == "halt":
            raise NonFiniteError(reason)
        if self._action == "rollback":
            raise RollbackError(first, reason)
