"""The demonstrations without anything to see: for policies that never had eyes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset


class BlackDataset(LeRobotDataset):
    """A LeRobot dataset in which all images are black."""

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """Black frames, [n, height, width, 3]."""
        height, width = self.image_size(camera)
        yield np.zeros((stop - start, height, width, 3), np.uint8)

    def fingerprint(self) -> str:
        """That of the dataset, and that it is black."""
        return f"black-{super().fingerprint()}"
