"""What `vlatrack sync` says of trackers that have lost a run, or a part of it, since they acknowledged it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlatrack.tracking.trust import Trust


class LossReport:
    """Asks the trackers of runs that they have completely, each run once, and says what they have lost."""

    def __init__(self, say: Callable[[str], None], trust: "Trust") -> None:
        self.trust = trust
        self._say = say
        self._unreachable: set[str] = set()
        """Where they are that could not be asked: there, nobody waits for an answer again."""

    def lost_by(self, run: Path, labels: Iterable[str]) -> list[str]:
        """Those trackers of one run that have lost something of it, as far as they can be asked."""
        from vlatrack.tracking.delivery.cursor import CursorFile
        from vlatrack.tracking.delivery.verification import unverified, verify
        from vlatrack.tracking.run_files import RunFiles

        lost = []
        for label in unverified(run, labels):
            place = CursorFile(RunFiles(run).delivery, label).read().destination
            if place and place in self._unreachable:
                continue
            for verdict in verify(run, [label], trust=self.trust):
                self._say(f"{run}  {label}: {verdict.told}")
                if verdict.is_lost:
                    lost.append(label)
                if not verdict.could_be_asked:
                    self._unreachable.add(place)
        return lost
