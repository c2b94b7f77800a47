"""What a policy has seen in an episode, as far as it looks back."""

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from vlatrack.inference.observation import Interface

Seen = TypeVar("Seen")


class Lookback(Generic[Seen]):
    """The last steps of an episode, and those of them that the policy is to be shown."""

    def __init__(self, interface: Interface, fps: float | None = None) -> None:
        """
        Args:
            fps: env steps in a second; None: not known, and not needed by a policy that counts steps.

        Raises:
            SpecError: the policy was trained with `data.history_deltas`, and no step is at one of these, or `fps` is
                not known.
        """
        self._steps_back = interface.steps_back(fps)
        # Consecutive steps may stay fewer at the start: the policy puts the first before them itself.
        self._repeats_start = interface.repeats_start and interface.deltas is not None
        self.length = self._steps_back[0] + 1
        """Steps that it remembers, the present one included."""
        self._seen: deque[Seen] = deque(maxlen=self.length)

    def add(self, seen: Iterable[Seen]) -> None:
        """What was seen in the next steps, one after another."""
        self._seen.extend(seen)

    @property
    def now(self) -> Seen | None:
        """What was seen last."""
        return self._seen[-1] if self._seen else None

    def shown(self) -> list[Seen]:
        """What the policy sees now, the oldest first; before an episode's start as in training (`history_start`)."""
        places = [len(self._seen) - 1 - back for back in self._steps_back]
        return [self._seen[max(0, place)] for place in places if place >= 0 or self._repeats_start]

    def clear(self) -> None:
        """A new episode begins."""
        self._seen.clear()
