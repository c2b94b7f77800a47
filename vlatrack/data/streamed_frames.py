"""The frames of episodes, read when somebody needs them, from files that must be those that the run began with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.augmentation import Augmentation, Variant
from vlatrack.data.episodes import Episode, NamesFrameFiles, frame_pieces
from vlatrack.data.store.episode_table import EpisodeList, Ints
from vlatrack.data.store.token_store import StoredDataset
from vlatrack.errors import DataError

Frames = NDArray[np.uint8]

_NEAR = 4  # steps; what lies between two frames that are further apart is not read
SHOWINGS = (1 << 31) - 1
"""So many variants are drawn from where a sample is to be changed anew each time that it is shown: two times are alike
by chance once in two billion."""


class StreamedFrames:
    """The frames of a list of episodes, of one dataset or of several, one after another.

    Args:
        parts: each dataset, and its episodes in the list.
        augmentation: changes the frames of variants; None: there are none.
        seed: of its draws.
    """

    def __init__(
        self,
        parts: Sequence[tuple[StoredDataset, EpisodeList]],
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self._parts, self._augmentation, self._seed = tuple(parts), augmentation, seed
        self._ends = np.cumsum([len(episodes) for _, episodes in parts])
        self._unchanged_ns = [dataset.opened_ns for dataset, _ in parts]

    def check_files(self, cameras: Sequence[str]) -> None:
        """Raise DataError if a file with frames is not there. What is in the files is not looked at."""
        for dataset, episodes in self._parts:
            if not isinstance(dataset.source, NamesFrameFiles):
                continue
            for camera in cameras:
                last = None
                for episode in episodes:
                    (file,) = dataset.source.frame_files(episode, camera, 0, 1) or (None,)
                    if file is not None and file != last and not file.exists():
                        raise DataError(f"{file}: no such file of episode {episode.index}; restore it")
                    last = file

    def read(self, number: int, camera: str, steps: Ints) -> Frames:
        """The frames [n, height, width, 3] of some steps, with one draw for all of them.

        Args:
            number: of the episode in the list; plus as many as there are, v times, for its variant v.

        Raises:
            DataError: they cannot be read, or the dataset has changed.
        """
        variant, place = divmod(number, int(self._ends[-1]))
        part = int(np.searchsorted(self._ends, place, side="right"))
        dataset, episodes = self._parts[part]
        episode = episodes[place - int(self._ends[part]) + len(episodes)]
        wanted, places = np.unique(steps, return_inverse=True)
        try:
            stretches = []
            for stretch in np.split(wanted, np.flatnonzero(np.diff(wanted) > _NEAR) + 1):
                start, stop = int(stretch[0]), int(stretch[-1]) + 1
                self._check_unchanged(part, episode, camera, start, stop)
                pieces = list(frame_pieces(dataset.source, episode, camera, start, stop))
                stretches.append(np.concatenate(pieces)[stretch - start])
        except DataError as error:
            raise DataError(_told(error, episode, camera)) from None
        frames = np.concatenate(stretches)[places]
        if not variant or self._augmentation is None:
            return frames
        return Variant(self._augmentation, self._seed, variant).of(frames, episode.index, camera)

    def _check_unchanged(self, part: int, episode: Episode, camera: str, start: int, stop: int) -> None:
        """Raise DataError if files that are going to be read are others than when the dataset was opened.

        A file that was touched since, which a link or other permissions do as well, is compared by its content, once.
        """
        dataset, source = self._parts[part][0], self._parts[part][0].source
        if not isinstance(source, NamesFrameFiles):
            return
        for file in source.frame_files(episode, camera, start, stop):
            try:
                touched_ns = file.stat().st_ctime_ns
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({error.strerror}); restore the file") from None
            if touched_ns > self._unchanged_ns[part]:
                dataset.check_unchanged()
                self._unchanged_ns[part] = touched_ns


def _told(error: DataError, episode: Episode, camera: str) -> str:
    """One line with the episode, and how to find such damage before a run."""
    place = "" if f"episode {episode.index}" in str(error) else f" (episode {episode.index}, {camera})"
    return f"{error}{place}; vlatrack data validate --frames looks at all images before a run"
