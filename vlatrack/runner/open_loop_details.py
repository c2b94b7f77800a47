"""What `vlatrack evaluate` measures of a split beside the losses of its samples: by task, by free decoding, over whole
episodes, and of predicted images. All ranks call these functions together; each has its share of the samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from vlatrack.builders.data import Split
from vlatrack.data.episodes import action_names, checked_frames
from vlatrack.data.loading import batches_by_group, load_batches
from vlatrack.data.order import even_subset
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.evaluation.frames import PredictedFrames, predict_frames, similarity_states
from vlatrack.evaluation.free_decoding import evaluate_free_decoding
from vlatrack.evaluation.trajectories import Trajectory, choose_episodes, predict_trajectory
from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.reports.tasks import TaskMetrics
from vlatrack.runner.open_loop_samples import Count, Report, SamplePass
from vlatrack.spec.training import EvaluateSpec, OpenLoopSpec
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.training.process_group import ProcessGroup

SHOWN_FRAMES = 4
"""Samples of each split whose images are drawn."""


@dataclass(frozen=True)
class SplitDetails:
    """One split, over all ranks."""

    by_task: Mapping[str, MetricStates]  # states of all losses and errors, in the order in which tasks occur
    images: MetricStates  # of predicted images; empty if the policy predicts none
    trajectories: Sequence[Trajectory]
    frames: Sequence[PredictedFrames]
    action_names: Sequence[str]
    episodes: Sequence[int]  # their indexes in the dataset, by position

    @property
    def states(self) -> MetricStates:
        """Over all tasks."""
        return sum(self.by_task.values(), self.images)


def metrics_of(by_split: Mapping[str, SplitDetails], policy: VlaPolicy) -> dict[str, float]:
    """Every metric by its full name."""
    return {
        f"{split}_{name}": value
        for split, details in by_split.items()
        for name, value in policy.metric_values(details.states).items()
    }


def task_metrics_of(by_split: Mapping[str, SplitDetails], policy: VlaPolicy) -> TaskMetrics:
    """Every metric of each task, and its number of `samples`."""
    return {
        split: {
            task: {"samples": float(states["l1_loss_action"].count), **policy.metric_values(states)}
            for task, states in details.by_task.items()
        }
        for split, details in by_split.items()
    }


@dataclass(frozen=True)
class DetailedEvaluation:
    """A policy in evaluation mode, with what its evaluation of any split needs."""

    policy: VlaPolicy
    encoding: Encoding
    accelerator: Accelerator
    group: ProcessGroup
    settings: EvaluateSpec
    world_model: bool  # whether the policy was trained to predict images

    @property
    def open_loop(self) -> OpenLoopSpec:
        return self.settings.open_loop or OpenLoopSpec()

    @property
    def image_decoder(self) -> str | None:
        """How predicted images become pixels, for people; None: the policy predicts none."""
        if not self.world_model:
            return None
        decoder = self._tokenizer.decoder
        return "none, so there is no PSNR and SSIM" if decoder is None else decoder.description

    @property
    def _tokenizer(self) -> ImageTokenizer:
        assert isinstance(self.encoding.images, ImageTokenizer)
        return self.encoding.images

    def of_split(self, name: str, split: Split, samples: SampleSet, report: Report) -> SplitDetails:
        """Evaluate one split, of which ``samples`` are the action chunks."""
        images, frames = self._images(name, split, samples, report) if self.world_model else (MetricStates(), [])
        return SplitDetails(
            by_task=self._by_task(name, samples, report),
            images=images,
            trajectories=self._trajectories(name, split, samples, report),
            frames=frames,
            action_names=action_names(split.source),
            episodes=split.episodes.indices.tolist(),
        )

    @property
    def _pass(self) -> SamplePass:
        return SamplePass(self.policy, self.accelerator, self.group)

    def _by_task(self, name: str, samples: SampleSet, report: Report) -> dict[str, MetricStates]:
        """The batches hold samples of one task each, so that one pass gives the states of each task and of all."""
        batch_size, limit = self.open_loop.batch_size, self.open_loop.max_samples
        numbers = even_subset(len(samples), batch_size=batch_size, limit=limit).samples.tolist()
        freely = even_subset(len(numbers), batch_size=batch_size, limit=self.settings.details.free_samples)
        free_numbers = [numbers[place] for place in freely.samples.tolist()]
        by_task = self._batches_by_task(samples, numbers)
        count = Count(report, name, sum(map(len, by_task.values())))
        states = {
            task: self.group.sum_states(self._pass.own_states(samples, batches, count))
            for task, batches in by_task.items()
        }
        by_task = self._batches_by_task(samples, free_numbers)
        count = Count(report, f"{name}, decoded freely", sum(map(len, by_task.values())))
        for task, batches in by_task.items():
            own = load_batches(samples, list(map(self.group.shard, batches)))
            decoded = evaluate_free_decoding(self.policy, count.over(own), self.accelerator)
            states[task] += self.group.sum_states(decoded)
        return states

    def _batches_by_task(self, samples: SampleSet, numbers: Sequence[int]) -> dict[str, list[list[int]]]:
        def task_of(number: int) -> str:
            return samples.episodes.task(samples.place(number)[0])

        return batches_by_group(numbers, task_of, batch_size=self.open_loop.batch_size)

    def _trajectories(self, name: str, split: Split, samples: SampleSet, report: Report) -> list[Trajectory]:
        horizon = self.policy.action_head.time_horizon
        chosen = choose_episodes(samples.episodes, self.settings.details.trajectories, horizon=horizon)
        places = self.group.shard(list(enumerate(chosen)))
        count = Count(report, f"{name}, whole episodes", len(places), "episode")
        own = [(place, self._trajectory(split, samples, position)) for place, position in count.over(places)]
        found = dict(chain.from_iterable(self.group.all_gather(own)))
        return [found[place] for place in sorted(found)]

    def _trajectory(self, split: Split, samples: SampleSet, position: int) -> Trajectory:
        episode = split.episodes[position]
        return predict_trajectory(
            self.policy,
            samples,
            position,
            self.accelerator,
            index=episode.index,
            actions=episode.actions,
            action_range=self.encoding.action_range,
            batch_size=self.open_loop.batch_size,
        )

    def _images(
        self, name: str, split: Split, samples: SampleSet, report: Report
    ) -> tuple[MetricStates, list[PredictedFrames]]:
        """The states of predicted images, and some of those images."""
        details, batch_size = self.settings.details, self.open_loop.batch_size
        states, kept = MetricStates(), []
        if limit := self.open_loop.world_samples:
            states = self._pass.own_image_states(samples, limit=limit, batch_size=batch_size)
        images = samples.of_kind("world_model")
        if details.frames and len(images) and self._tokenizer.decoder is not None:
            order = even_subset(len(images), batch_size=batch_size, limit=details.frames)
            numbers = order.samples.tolist()
            generated = _spread(numbers, details.generated)
            shown = _spread(generated or numbers, SHOWN_FRAMES)
            own = [self.group.shard(batch.tolist()) for batch in order]
            count = Count(report, f"{name}, predicted images", sum(map(len, own)), "image")
            predicted = predict_frames(
                self.policy,
                images,
                own,
                self.accelerator,
                generate=set(generated),
                code_ids=self._tokenizer.code_ids,
                decode=self._tokenizer.decode,
                read_frames=_reader(split, self.encoding.cameras, self._tokenizer),
            )
            for frames in count.over(predicted):
                states = states + similarity_states(frames)
                if frames.number in shown:
                    kept.append(frames)
        gathered = chain.from_iterable(self.group.all_gather(kept))
        return self.group.sum_states(states), sorted(gathered, key=lambda frames: frames.number)


def _spread(numbers: Sequence[int], limit: int) -> list[int]:
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), limit)).round().astype(int)
    return [numbers[place] for place in places]


def _reader(split: Split, cameras: Sequence[str], tokenizer: ImageTokenizer) -> Callable[[int, int], NDArray[np.uint8]]:
    """Reads the images of a step, in the size that is encoded; keeps those of the last episode."""

    @lru_cache(maxsize=len(cameras))
    def episode_frames(position: int, camera: str) -> NDArray[np.uint8]:
        return checked_frames(split.source, split.episodes[position], camera)

    def read(position: int, step: int) -> NDArray[np.uint8]:
        return np.concatenate(
            [tokenizer.resized(episode_frames(position, camera)[step : step + 1]) for camera in cameras]
        )

    return read
