"""How `vlatrack data validate` looks at the images of a dataset."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from vlatrack.cli.bars import Bars
from vlatrack.data.checks.finding import Finding, episodes_place, plural
from vlatrack.data.checks.orientation import check_orientation, orientation
from vlatrack.data.checks.scan import scan_frames
from vlatrack.data.episodes import Episode, EpisodeSource, FindsMissingFrames
from vlatrack.data.sampled_frames import frames_at

_COMPARED_TASKS, _COMPARED_EPISODES = 2, 3


@dataclass(frozen=True)
class Images:
    """How images are looked at."""

    bars: Bars
    every_frame: bool  # else those of the first episode
    simulator: str | None  # that first images are compared with

    def look(
        self,
        where: str,
        source: EpisodeSource,
        episodes: Iterable[Episode],
        cameras: Sequence[str],
        lengths: Sequence[int],
    ) -> Iterator[Finding]:
        """What is wrong with them; `lengths` are those of the episodes."""
        number = len(lengths) if self.every_frame else 1

        def show(done: int, total: int) -> None:
            self.bars.advance(f"images of {where}", done, total, unit="step", is_brief=not self.every_frame)

        remaining = iter(episodes)
        yield from scan_frames(
            source, islice(remaining, number), cameras, where=where, total=sum(lengths[:number]), progress=show
        )
        if isinstance(source, FindsMissingFrames):  # what is not there need not be decoded to be missed
            yield from _missing(where, source, remaining, cameras)

    def turns(
        self,
        where: str,
        source: EpisodeSource,
        episodes: Iterable[Episode],
        cameras: Sequence[str],
        rotation: int | None = None,
    ) -> Iterator[Finding]:
        """Whether they are turned as the simulator's are, or as `data.recorded.rotation` says."""
        if self.simulator is None:
            return
        from vlatrack.envs.upright import turn_of_rotation, upright_images

        of_tasks: dict[str, list[Episode]] = {}
        for episode in episodes:
            if len(of_task := of_tasks.setdefault(episode.task, [])) < _COMPARED_EPISODES:
                of_task.append(episode)
        expected = None if rotation is None else turn_of_rotation(self.simulator, rotation)
        with closing(upright_images(self.simulator, list(of_tasks), cameras)) as rendered:
            for task, images in islice(rendered, _COMPARED_TASKS):
                for camera, image in images.items():
                    recorded = [frames_at(source, episode, camera, [0])[0] for episode in of_tasks[task]]
                    place = f"{where}, {camera}, {task!r}"
                    yield from check_orientation(place, orientation(recorded, image), expected)


def _missing(
    where: str, source: FindsMissingFrames, episodes: Iterable[Episode], cameras: Sequence[str]
) -> Iterator[Finding]:
    """Episodes without their frames, as far as that shows without decoding them."""
    problems = {
        episode.index: problem for episode in episodes if (problem := source.problem_of(episode, cameras)) is not None
    }
    if problems:
        number, first = len(problems), next(iter(problems.values()))
        message = f"{plural(number, 'episode')} without all frames: {first}"
        remedy = "restore the files, or leave these episodes out"
        yield Finding("error", "frames", episodes_place(where, list(problems)), message, remedy, number)
