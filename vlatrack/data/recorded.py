"""How demonstrations were made: what an evaluation in a simulator has to repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vlatrack.data.episodes import Episode, EpisodeSource, KnowsImageSizes, checked_frames

ImageSizes = Mapping[str, tuple[int, int]]
"""Height and width in pixels of the images of each camera."""


@dataclass(frozen=True)
class Recorded:
    """What is known of it; None: not known."""

    image_sizes: ImageSizes = field(default_factory=dict)  # of the cameras of which it is known
    rotation: int | None = None  # degrees by which images are turned, compared with the simulator's
    prompt: Literal["language", "name"] | None = None  # of a task, which its episodes have as instruction
    gripper: Literal["raw", "openvla"] | None = None  # in the simulator's terms, or 0 for closed and 1 for open
    waits: int | None = None  # env steps between an episode's initial state and its first recorded moment

    def unknown(self, cameras: Sequence[str]) -> list[str]:
        """The names of what is not known."""
        found = [] if all(camera in self.image_sizes for camera in cameras) else ["resolution"]
        others = {"rotation": self.rotation, "prompt": self.prompt, "gripper": self.gripper, "waits": self.waits}
        return found + [name for name, value in others.items() if value is None]


def image_sizes(source: EpisodeSource, episode: Episode, cameras: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The sizes that the dataset tells, or else those of the images of an episode, which are read.

    Raises:
        DataError: they cannot be read.
    """
    sizes = {}
    for camera in cameras:
        if isinstance(source, KnowsImageSizes):
            sizes[camera] = source.image_size(camera)
        else:
            _, height, width, _ = checked_frames(source, episode, camera).shape
            sizes[camera] = height, width
    return sizes
