"""Which `_step` a journal record has at W&B: its sequence number, shifted after a repair.

W&B drops a row whose `_step` is lower than the last one. Rows that it lost in the middle of a run are therefore
appended behind the last one, and what a resume logs comes behind these: at its sequence number plus a shift, which
stands in the config of the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONFIG_KEY = "vlatrack_step_shift"


@dataclass(frozen=True)
class StepShift:
    """Records from `from_seq` on have the `_step` seq + `shift`."""

    from_seq: int = 0
    shift: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "StepShift":
        """As the config of a run has it; none if that says nothing of it, or something else."""
        match config.get(CONFIG_KEY):
            case {"from_seq": int(from_seq), "shift": int(shift)} if from_seq >= 0 and shift >= 0:
                return cls(from_seq, shift)
            case _:
                return cls()

    @property
    def in_config(self) -> dict[str, dict[str, int]]:
        return {CONFIG_KEY: {"from_seq": self.from_seq, "shift": self.shift}}

    def step_of(self, seq: int) -> int:
        """The `_step` of a record that is logged now."""
        return seq + self.shift if seq >= self.from_seq else seq

    def seq_of(self, step: int) -> int:
        """The last record that W&B has if its last row has this `_step`, -1 for none; rows that a repair appended say
        nothing of it but that all up to the repair has been delivered."""
        if self.shift == 0:
            return step
        return max(step - self.shift, self.from_seq - 1)

    def tells(self, step: int) -> bool:
        """Whether a last row at this `_step` says which record was the last one."""
        return self.shift == 0 or step >= self.step_of(self.from_seq)
