"""Are there pictures in the frames? Black, frozen and damaged cameras, as the frames stream by."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.checks.finding import Finding, Severity, episodes_place, plural
from vlatrack.data.episodes import Episode, EpisodeSource, frame_pieces
from vlatrack.errors import DataError

_DARKEST = 16
"""A frame without a brighter pixel is black: that of a lens cap, or of a renderer without light."""
_FLATTEST = 4
"""A frame whose pixels differ by no more has nothing on it."""
_SHORTEST = 5
"""In an episode of fewer steps nothing need have moved."""


@dataclass
class CameraScan:
    """What is known of the frames of one camera after some episodes."""

    frames: int = 0
    episodes: int = 0
    black: list[int] = field(default_factory=list)  # episodes in which all frames are
    blank: list[int] = field(default_factory=list)  # episodes in which all frames are of one colour, but not black
    frozen: list[int] = field(default_factory=list)  # episodes in which all frames are the same
    unreadable: dict[int, DataError] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)  # height, width → an episode

    def add(self, episode: Episode, pieces: Iterable[NDArray[np.uint8]]) -> None:
        """Look at the frames of an episode; raises what reading them raises."""
        first: NDArray[np.uint8] | None = None
        moves, lightest, widest = False, 0, 0
        for piece in pieces:
            if first is None:
                first = piece[0].copy()
                self.sizes.setdefault(first.shape[:2], episode.index)
            self.frames += len(piece)
            moves = moves or any(not np.array_equal(frame, first) for frame in piece)
            for frame in piece:  # the first frame mostly settles it, and then nothing is gone through
                if lightest > _DARKEST and widest > _FLATTEST:
                    break
                pixels = frame.reshape(-1, 3)
                lightest = max(lightest, int(pixels.max()))
                widest = max(widest, int(np.ptp(pixels, axis=0).max()))
        self.episodes += 1
        if lightest <= _DARKEST:
            self.black.append(episode.index)
        elif widest <= _FLATTEST:
            self.blank.append(episode.index)
        elif not moves and episode.length >= _SHORTEST:
            self.frozen.append(episode.index)


class FrameScan:
    """Decodes the frames of episodes, and keeps what is wrong with them."""

    def __init__(self, source: EpisodeSource, cameras: Sequence[str]) -> None:
        self._source = source
        self.cameras = {camera: CameraScan() for camera in cameras}

    def add(self, episode: Episode) -> None:
        """Decode all frames of an episode; those that cannot be read are a finding."""
        for camera, scan in self.cameras.items():
            try:
                scan.add(episode, frame_pieces(self._source, episode, camera))
            except DataError as error:
                scan.unreadable[episode.index] = error

    def findings(self, where: str) -> Iterator[Finding]:
        """Of what has been looked at.

        Args:
            where: the dataset, for messages.
        """
        for camera, scan in self.cameras.items():
            for index, why in scan.unreadable.items():
                yield Finding.of_error("frames", f"{where}, episode {index}", why)
            for what, indexes in (("black", scan.black), ("of one colour", scan.blank)):
                if indexes:
                    message = f"all frames are {what} in {plural(len(indexes), 'episode')} of {scan.episodes:,}"
                    place = episodes_place(f"{where}, {camera}", indexes)
                    yield Finding("error", "black camera", place, message, _LEAVE_OUT, len(indexes))
            if scan.frozen:
                message = f"the picture never changes in {plural(len(scan.frozen), 'episode')} of {scan.episodes:,}"
                place = episodes_place(f"{where}, {camera}", scan.frozen)
                severity: Severity = "error" if len(scan.frozen) == scan.episodes else "warning"
                yield Finding(severity, "frozen camera", place, message, _LEAVE_OUT, len(scan.frozen))
            if len(scan.sizes) > 1:
                shown = ", ".join(f"{h} x {w} from episode {index}" for (h, w), index in scan.sizes.items())
                message = f"images differ in size: {shown}"
                yield Finding("warning", "image sizes", f"{where}, {camera}", message, _SCALED)


_LEAVE_OUT = "leave these episodes out, or the camera"
_SCALED = "all are scaled to the same square: record them alike"
