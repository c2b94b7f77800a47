"""Reacts to steps that were not taken because their loss or gradient was not finite."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vlatrack.errors import NonFiniteError
from vlatrack.models.losses.base import non_finite_terms
from vlatrack.training.callback import Callback
from vlatrack.training.forensics import MOST_OF_A_RUN, Forensics
from vlatrack.training.optimisation import StepResult
from vlatrack.training.state import TrainState

MOST_SKIPPED_IN_A_ROW = 10
"""More steps in a row are not a matter of their data: the weights are finite, but no longer those of a policy."""


class RollbackError(Exception):
    """Asks the loop to return to the last checkpoint and to leave out the batch of ``step`` from then on."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class NonFiniteGuard:
    """Detects steps that were not taken: at once on a CPU, on a GPU only where the loop synchronises anyway.

    Detecting one late does no harm, since `train_step` has already left the weights as they were.
    """

    def __init__(
        self,
        device: torch.device,
        action: Literal["halt", "skip", "rollback"],
        callbacks: Sequence[Callback],
        examine: Callable[[int, str, StepResult | None], Forensics] | None = None,
    ) -> None:
        """
        Args:
            examine: what is known of a step, by its number, the reason, and its result if that is still there.
        """
        self._action, self._callbacks, self._examine = action, callbacks, examine
        self._examined = 0
        self._at_once = device.type == "cpu"
        self._none = torch.zeros((), dtype=torch.int64, device=device)
        self._count, self._first = self._none, self._none  # steps not taken since the last check, and the first of them
        self._in_a_row = self._none  # steps not taken since the last one that was
        self._last: StepResult | None = None

    def note(self, state: TrainState, result: StepResult) -> None:
        """Add the result of step ``state.step``.

        Raises:
            NonFiniteError, RollbackError: as ``check``.
        """
        bad = ~result.finite
        self._first = torch.where(bad & (self._count == 0), state.step, self._first)
        self._count = self._count + bad
        self._in_a_row = torch.where(bad, self._in_a_row + 1, 0)
        self._last = result
        if self._at_once:
            self.check(state)

    def check(self, state: TrainState) -> None:
        """Read from the device how many steps were not taken, and act on it.

        Raises:
            NonFiniteError: the action is ``halt``, or ``skip`` and more than ``MOST_SKIPPED_IN_A_ROW`` steps in a row
                were not taken.
            RollbackError: the action is ``rollback``.
        """
        self.act(self.take(), state, last_step=state.step)

    def take(self) -> list[Tensor]:
        """What `act` needs to know, on the device: how many steps were not taken since the last call, the first of
        them, and how many in a row."""
        taken = [self._count, self._first, self._in_a_row]
        self._count, self._first = self._none, self._none
        return taken

    def act(self, taken: Sequence[Tensor], state: TrainState, *, last_step: int) -> None:
        """Act on what `take` returned after ``last_step``; reading it waits for the device if it is still there.

        Raises:
            NonFiniteError, RollbackError: as `check`.
        """
        count, first, in_a_row = (int(value) for value in taken)
        if not count:
            return
        state.skipped_steps += count
        is_last = count == 1 and first == last_step == state.step
        what = f"steps {first} and {count - 1} more" if count > 1 else f"step {first}"
        reason = f"{what}: loss or gradient is not finite"
        if is_last and self._last is not None:
            terms = ", ".join(non_finite_terms(self._last.loss_totals))
            reason += f" (loss {self._last.loss.item():g}{f', from {terms}' if terms else ''})"
        self._tell_forensics(first, reason, self._last if is_last else None)
        for callback in self._callbacks:
            callback.on_non_finite(first, reason)
        if self._action == "halt":
            raise NonFiniteError(reason)
        if self._action == "skip" and in_a_row > MOST_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{reason}, as in the {in_a_row - 1} steps before it")
        if self._action == "rollback":
            raise RollbackError(first, reason)

    def _tell_forensics(self, step: int, reason: str, result: StepResult | None) -> None:
        if self._examine is None or not self._callbacks or self._examined >= MOST_OF_A_RUN:
            return
        self._examined += 1
        forensics = self._examine(step, reason, result)
        for callback in self._callbacks:
            callback.on_forensics(forensics)
