"""Videos of some episodes of an evaluation, those of failures first."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vlatrack.data.video import VideoWriter
from vlatrack.evaluation.closed_loop import EpisodeResult
from vlatrack.evaluation.episodes import EpisodeId
from vlatrack.evaluation.rows import EpisodeRow
from vlatrack.runner.episode_shares import unwritable
from vlatrack.runner.evaluation_folder import EvaluationFolder
from vlatrack.tracking.privacy import private_directory

SHOWN_HEIGHT = 256
"""Pixels that a video has at least: trackers play it in its own size. Smaller images are repeated, not smoothed."""


class EpisodeVideos:
    """Keeps the videos of the first failures of each task; of successes, too, as long as there are fewer.

    Which ones stay does not depend on the order in which episodes end.
    """

    def __init__(self, folder: EvaluationFolder, numbers: Mapping[EpisodeId, int], *, most: int, fps: int) -> None:
        """
        Args:
            numbers: the place of each episode in the set.
            fps: env steps in a second.
        """
        self._folder, self._most, self._fps = folder, most, fps
        self._numbers = numbers
        self._kept = self._kept_so_far()
        self._digits = len(str(max(numbers.values())))

    def add(self, result: EpisodeResult) -> str:
        """Keep the video of an episode, if it is one of those; its path in the folder, or empty.

        Raises:
            RunError: it cannot be written.
        """
        if not result.frames or not self._most:
            return ""
        rank = self._rank(result.outcome, result.episode.id)
        if len(self._kept) >= self._most:
            last = max(self._kept)
            if rank > last:
                return ""
            self._kept.pop(last).unlink(missing_ok=True)
        name = f"{result.outcome}-{result.episode.number:0{self._digits}}-{result.episode.id.task}.mp4"
        path = private_directory(self._folder.videos) / "".join(c if c.isalnum() or c in "-._" else "_" for c in name)
        self._write(path, result)
        self._kept[rank] = path
        return path.relative_to(self._folder.path).as_posix()

    def settle(self) -> list[EpisodeRow]:
        """Keep of what several processes have kept as many as one would have; remove what was not finished.

        Returns:
            the rows of the folder, with the videos that are there.
        """
        kept = self._kept_so_far()
        most = len(kept) if self._folder.is_finished or not self._most else self._most
        stay = {kept[rank] for rank in sorted(kept)[:most]}
        for file in self._folder.videos.glob("*.mp4"):
            if file not in stay:
                file.unlink()
        return [
            replace(row, video="") if row.video and self._folder.path / row.video not in stay else row
            for row in self._folder.rows
        ]

    def _kept_so_far(self) -> dict[tuple[bool, int, int], Path]:
        rows = [row for row in self._folder.rows if row.video and (self._folder.path / row.video).is_file()]
        return {self._rank(row.outcome, row.id): self._folder.path / row.video for row in rows}

    def _rank(self, outcome: str, episode: EpisodeId) -> tuple[bool, int, int]:
        """Lower ones are kept: the tasks take turns."""
        return outcome == "success", int(episode.initial_state), self._numbers[episode]

    def _write(self, path: Path, result: EpisodeResult) -> None:
        frames = np.stack(result.frames)
        times = math.ceil(SHOWN_HEIGHT / frames.shape[1])
        frames = frames.repeat(times, axis=1).repeat(times, axis=2)
        height, width = (size - size % 2 for size in frames.shape[1:3])  # the encoder takes even sizes
        unfinished = path.with_suffix(".partial.mp4")
        fps = max(1, round(self._fps * len(frames) / max(1, result.steps)))
        try:
            writer = VideoWriter(unfinished, fps=fps, height=height, width=width)
            writer.add(frames[:, :height, :width])
            writer.close()
            unfinished.replace(path)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise unwritable(path, error) from error
