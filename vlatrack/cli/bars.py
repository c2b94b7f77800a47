"""Progress of what takes long: a bar for each thing in a terminal, lines in a log file."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlatrack.cli.milestones import LONGEST_SILENCE_S, Milestones, Pace, duration_text
from vlatrack.tracking.printable import printable

WIDTH_OF_FILES = 500
"""A file has no width that tables would have to fit into."""
_NARROWEST_BAR, _WIDEST_BAR = 6, 24
_SHORTEST_NAME = 8
_GAP = "  "


@dataclass
class _Shown:
    pace: Pace
    details: Sequence[str] = ()


class Bars:
    """Shows how far things have come, as a context manager; in a log file lines, see `Milestones`. Inside, it is told
    what `vlatrack.data.progress` tells as well.

    Args:
        clock: seconds from any moment on.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self.is_live = is_live(console)
        self._milestones = Milestones(console, clock)
        self._shown: dict[str, _Shown] = {}
        self._lock = threading.Lock()  # the live display reads what the callbacks write
        self._inside = ExitStack()
        self._live = Live(console=console, get_renderable=self._bars, refresh_per_second=5)

    def __enter__(self) -> Self:
        from vlatrack.data.progress import telling

        if self.is_live and not self._console.quiet:
            self._live.start()
        self._inside.enter_context(telling(self.advance))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._inside.close()

    def stop(self) -> None:
        """Leave the bars as they are."""
        self._live.stop()

    def advance(
        self, name: str, done: int, total: int, *, unit: str, details: Sequence[str] = (), is_brief: bool = False
    ) -> None:
        """`done` of `total` are done; what begins anew is measured anew.

        Args:
            unit: what is counted, in the singular.
            details: each is shown whole or not at all.
            is_brief: it mostly takes a moment, and then a log file has no line of it.
        """
        now, name = self._clock(), printable(name)
        with self._lock:
            shown = self._shown.get(name)
            if is_new := shown is None or done < shown.pace.done:
                shown = self._shown[name] = _Shown(Pace(unit, done, now))
            shown.pace.advance(done, total, now)
            shown.details = [printable(detail) for detail in details]
        if not self.is_live:
            self._milestones.report(name, shown.pace, _GAP.join(shown.details), is_new=is_new, is_brief=is_brief)

    def tell(self, name: str) -> None:
        """Print the line about this now, in a log file."""
        if not self.is_live and (shown := self._shown.get(name)) is not None:
            self._milestones.tell(name, shown.pace, _GAP.join(shown.details))

    def _bars(self) -> RenderableType:
        width = self._console.width
        with self._lock:
            return Group(*(_bar(name, shown.pace, shown.details, width) for name, shown in self._shown.items()))


class StillAtIt:
    """Says that something goes on which does not tell how far it has come: a spinner in a terminal, else a line when it
    has taken 30 seconds, and every 30 seconds from then on.

    Args:
        wait: waits for so many seconds, and returns whether the end has come meanwhile; None: by the clock.
    """

    def __init__(self, console: Console, text: str, wait: Callable[[float], bool] | None = None) -> None:
        self._console, self._text = console, text
        self._over = threading.Event()
        self._wait = wait or self._over.wait
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._spinner = console.status(printable(text)) if is_live(console) else None

    def __enter__(self) -> Self:
        if self._spinner is None:
            self._thread.start()
        else:
            self._spinner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._spinner is None:
            self._thread.join()
        else:
            self._spinner.stop()

    def _tell(self) -> None:
        told = 0
        while not self._wait(LONGEST_SILENCE_S):
            told += 1
            self._console.print(
                f"{self._text}  {duration_text(told * LONGEST_SILENCE_S)} so far", soft_wrap=True, markup=False
            )


def is_live(console: Console) -> bool:
    """Whether lines may be drawn anew. FORCE_COLOR and the like make rich take a file for a terminal: colours it may
    have, bars it may not."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


def _bar(name: str, pace: Pace, details: Sequence[str], width: int) -> RenderableType:
    """One line of at most `width` columns. How far, how long and how fast stay; of a narrow terminal the bar has an
    eighth, and as many details as fit follow, each whole; a long name is shortened."""
    facts = " ".join(word for word in (f"{pace.done}/{pace.total}", pace.time or "-:--:--", pace.rate) if word)
    room = width - len(facts) - 2
    title = Text(name, style="bold")
    title.truncate(max(_SHORTEST_NAME, room - _NARROWEST_BAR), overflow="ellipsis")
    room = max(0, room - title.cell_len)
    bar_width = min(room, _WIDEST_BAR, max(_NARROWEST_BAR, width // 8) if details else _WIDEST_BAR)
    row = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(3):
        row.add_column(no_wrap=True, overflow="crop")
    bar = ProgressBar(total=max(1, pace.total), completed=pace.done, width=bar_width) if bar_width else ""
    row.add_row(title, bar, Text(_GAP.join([facts, *fitting(details, room - bar_width)])))
    return row


def fitting(words: Sequence[str], width: int) -> Iterator[str]:
    """The first of the words that fit into so many columns, each whole, with a gap before it."""
    for word in words:
        width -= len(_GAP) + cell_len(word)
        if width < 0:
            return
        yield word
