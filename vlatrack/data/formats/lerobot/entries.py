"""What is kept of each episode of a LeRobot dataset, whatever its layout: where its rows and its videos are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatrack.data.formats.lerobot.layout import DatasetInfo

Place = tuple[int, int]
"""The two numbers that name a file of a layout: of its chunk, and of the file in it."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Where one episode is in a camera's videos."""

    place: Place
    start_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One episode: a few numbers, so that a dataset of any size has its entries in memory."""

    index: int
    tasks: tuple[str, ...]
    length: int
    place: Place
    clips: tuple[Clip | None, ...]  # one for each camera that has videos; None: this episode has none of it


@dataclass(frozen=True)
class Layout:
    """How one version of the format lays out its files."""

    placeholders: tuple[str, str]  # of the numbers of a `Place`, in the path templates
    data_path: str  # where info.json has none
    suffixes: tuple[str, ...]  # of the files that hold its content
    read_entries: Callable[[Path, DatasetInfo, Sequence[str]], list[Entry]]  # of a folder, for its video cameras


def instructions(value: object) -> tuple[str, ...]:
    """The instructions of an episode as its metadata have them: a list, which may be null or hold nulls."""
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())
