"""One pass of a policy over this rank's share of a split's samples: action chunks, or next images."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from accelerate import Accelerator

from vlatrack.data.loading import Numbers, load_batches
from vlatrack.data.order import even_subset
from vlatrack.data.samples import Samples, SampleSet
from vlatrack.evaluation.frames import copied_states
from vlatrack.evaluation.open_loop import evaluate_open_loop, image_states
from vlatrack.metrics.states import MetricStates
from vlatrack.models.policy import VlaPolicy
from vlatrack.training.process_group import ProcessGroup

Report = Callable[[str, int, int, str], None]
"""Told how far a part of an evaluation has come, as `Callback.on_evaluate`."""
_T = TypeVar("_T")


@dataclass
class Count:
    """Counts what is done of a part of an evaluation, and reports it."""

    report: Report
    part: str
    total: int
    unit: str = "batch"
    done: int = 0

    def over(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items, each counted when the next one is asked for."""
        for item in items:
            yield item
            self.done += 1
            self.report(self.part, self.done, self.total, self.unit)


@dataclass(frozen=True)
class SamplePass:
    """A policy, and how samples are put before it."""

    policy: VlaPolicy
    accelerator: Accelerator
    group: ProcessGroup
    length_multiple: int = 1  # see `load_batches`
    before_batch: Callable[[], None] = lambda: None

    def own_states(self, samples: Samples, order: Iterable[Numbers], count: Count | None = None) -> MetricStates:
        """The states over this rank's share of the batches; one without a sample joins in with an idle batch."""
        batches = load_batches(
            samples,
            (self.group.shard(numbers) for numbers in order),
            pin=self.accelerator.device.type == "cuda",
            length_multiple=self.length_multiple,
        )
        counted = batches if count is None else count.over(batches)
        return evaluate_open_loop(self.policy, counted, self.accelerator, before_batch=self.before_batch)

    def own_image_states(self, samples: SampleSet, *, limit: int, batch_size: int) -> MetricStates:
        """The states of image metrics over this rank's share of at most ``limit`` world-model samples.

        Args:
            samples: of any kind, of the episodes in question.
        """
        images = samples.of_kind("world_model")
        order = even_subset(len(images), batch_size=batch_size, limit=limit)
        states = image_states(self.own_states(images, order))
        copied = copied_states(images, order.samples.tolist())
        return states + copied if self.group.is_main_process else states
