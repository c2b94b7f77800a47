"""What a pass over a dataset, or over the frames of some episodes, tells."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vlatrack.data.checks.episodes import EpisodeRecord, check_episodes
from vlatrack.data.checks.finding import Finding
from vlatrack.data.checks.frames import FrameScan
from vlatrack.data.checks.ranges import Ranges, check_ranges
from vlatrack.data.checks.told_statistics import TellsStatistics, check_told
from vlatrack.data.episode_statistics import EpisodeStatistics, RunningStatistics, ValueStatistics
from vlatrack.data.episodes import Episode, EpisodeSource, SkipsBadEpisodes, action_names
from vlatrack.data.progress import reading_progress
from vlatrack.errors import DataError
from vlatrack.tokens.bins import ValueRange

Progress = Callable[[int, int], None]
"""Frames done, frames in total."""


@dataclass
class DatasetScan:
    """What is known of a dataset after one pass over it, without its frames."""

    source: EpisodeSource
    statistics: EpisodeStatistics
    records: Sequence[EpisodeRecord]
    bad: Sequence[Finding] = field(default_factory=tuple)  # episodes that cannot be read

    @property
    def ranges(self) -> tuple[Ranges, Ranges]:
        """From the smallest to the largest value, of the actions and of the states."""
        found = self.statistics
        action = Ranges("action", found.actions, _extremes(found.actions), action_names(self.source))
        return action, Ranges("state", found.states, _extremes(found.states))

    def findings(self) -> list[Finding]:
        """Of its episodes and their numbers; what an experiment can choose, such as a range, is a warning at most."""
        name = self.source.name
        of_ranges = check_ranges(name, self.ranges, "minmax")
        chosen = [replace(f, severity="warning") if f.check == "constant" else f for f in of_ranges]
        return [*self.bad, *chosen, *check_episodes(name, self.records), *self._told()]

    def _told(self) -> Iterator[Finding]:
        """Where the dataset's own statistics are not those of its values; of all of these, or not at all."""
        if self.bad or not isinstance(self.source, TellsStatistics):
            return
        try:
            told = self.source.told_statistics()
        except DataError as error:
            yield replace(Finding.of_error("statistics", self.source.name, error), severity="warning")
            return
        kinds = {"action": self.statistics.actions, "state": self.statistics.states}
        for kind, of_kind in told.items():
            yield from check_told(self.source.name, kind, kinds[kind], of_kind)


def scan_dataset(source: EpisodeSource, *, skip_bad: bool) -> DatasetScan:
    """Read all episodes once, without their frames; memory grows by about 200 bytes an episode. How far it has come is
    told by `vlatrack.data.progress`.

    Args:
        skip_bad: an episode that cannot be read is a finding, and the others are read, if the dataset can do that.

    Raises:
        DataError: an episode cannot be read.
    """
    running, records, bad = RunningStatistics(), [], []
    progress = reading_progress(source)

    def on_bad(position: int, error: DataError) -> None:
        if not skip_bad:
            raise error
        bad.append(Finding.of_error("unreadable", f"{source.name}, episode {position}", error))

    for number, episode in enumerate(episodes_of(source, on_bad), start=1):
        running.add(episode)
        records.append(EpisodeRecord.of(episode))
        if progress is not None:
            progress(number + len(bad))
    return DatasetScan(source, running.result(), records, bad)


def episodes_of(source: EpisodeSource, on_bad: Callable[[int, DataError], None]) -> Iterable[Episode]:
    """The episodes of a dataset, as they are read; see `SkipsBadEpisodes.readable_episodes`."""
    return source.readable_episodes(on_bad) if isinstance(source, SkipsBadEpisodes) else source.episodes()


def scan_frames(
    source: EpisodeSource,
    episodes: Iterable[Episode],
    cameras: Sequence[str],
    *,
    where: str,
    total: int,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    """Decode all frames of the episodes, piece by piece, and tell what is wrong with them.

    Args:
        where: the dataset or split, for messages.
        total: steps of these episodes.
    """
    scan, done = FrameScan(source, cameras), 0
    for episode in episodes:
        scan.add(episode)
        done += episode.length
        if progress is not None:
            progress(done, total)
    yield from scan.findings(where)


def _extremes(found: Sequence[ValueStatistics]) -> ValueRange:
    return ValueRange(tuple(min(of.low, of.high) for of in found), tuple(of.high for of in found))
