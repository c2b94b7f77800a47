"""The demonstrations without anything to see: for policies that never had eyes."""

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset


class BlackDataset(LeRobotDataset):
    """A LeRobot v3.0 dataset in which all images are black."""

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """Black frames, [T, height, width, 3]."""
        height, width = self.image_size(camera)
        return np.zeros((episode.length, height, width, 3), np.uint8)

    def fingerprint(self) -> str:
        """That of the dataset, and that it is black."""
        return f"black-{super().fingerprint()}"
