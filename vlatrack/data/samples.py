"""Training samples from episodes: one for every complete action chunk, and every world-model step.

Legend: T steps of an episode, H steps of a chunk, A / N numbers of an action / a state,
R x C image codes.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.deltas import Deltas, DeltaSteps
from vlatrack.data.episodes import EpisodeSource
from vlatrack.data.store.episode_table import EpisodeList, Floats, Ints
from vlatrack.data.store.image_codes import Codes, FrameEncoder, ImageIds
from vlatrack.errors import DataError
from vlatrack.tokens.batch import Batch
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import (
    VLA_PROMPT,
    WORLD_MODEL_PROMPT,
    Ids,
    TokenSequence,
    check_length,
    vla_sequence,
    world_model_sequence,
)
from vlatrack.tokens.templates import Contents, RowGroup, RowTemplate, assemble
from vlatrack.tokens.text import TextTokenizer

SampleKind = Literal["vla", "world_model"]

_MOST_TEXTS = 4096
"""Instructions whose ids are kept."""


@dataclass(frozen=True)
class Encoding:
    """How episodes become tokens: the same for training, evaluation and a robot."""

    layout: TokenLayout
    bins: Bins
    action_range: ValueRange
    state_range: ValueRange | None  # None: the prompt has no state
    text: TextTokenizer
    images: FrameEncoder
    cameras: tuple[str, ...]
    history: int
    horizon: int
    max_length: int
    repeats_start: bool = True  # before the first step of an episode its images stand for earlier ones; else for none
    world_history: int | None = None  # of world-model samples; None: as many steps as ``history``
    deltas: Deltas | None = None  # the ``history`` moments in seconds; None: they are consecutive steps

    def history_of(self, kind: SampleKind) -> int:
        """The time steps that a sample of a kind sees."""
        return self.history if kind == "vla" or self.world_history is None else self.world_history

    def counts_steps(self, kind: SampleKind) -> bool:
        """Whether the moments of a kind are consecutive steps, and not at ``deltas``."""
        return self.deltas is None or (kind == "world_model" and self.world_history is not None)


class Samples(Protocol):
    """What a training learns from: token rows by number, in batches."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Iterable[int], *, length_multiple: int = 1) -> Batch:
        """The rows of these numbers; none make an idle batch."""

    def lengths_of(self, numbers: Ints) -> Ints:
        """[n] the number of tokens of each of these rows."""

    def describe(self, number: int) -> dict[str, str | int]:
        """A row as people find it."""


class SampleSet:
    """Samples of episodes, built when they are asked for. Memory does not grow with the number of samples."""

    def __init__(
        self,
        episodes: EpisodeList,
        codes: Sequence[ImageIds],
        encoding: Encoding,
        kinds: Sequence[SampleKind],
        *,
        every: int = 1,
        variants: int = 0,
        delta_steps: DeltaSteps | None = None,
    ) -> None:
        """
        Args:
            codes: of each camera of the encoding; behind those of the episodes follow those of their first variant,
                and so on.
            every: a sample starts at every n-th step of an episode.
            variants: how many there are beside the original. Sample ``number + v * len(self)`` has the images of
                variant v.
            delta_steps: of the episodes, where the encoding has deltas.
        """
        assert (delta_steps is None) == (encoding.deltas is None), "the moments of an encoding with deltas"
        self._variants, self._delta_steps = variants, delta_steps
        self.episodes, self._codes, self._encoding, self._kinds, self._every = episodes, codes, encoding, kinds, every
        self._text = lru_cache(_MOST_TEXTS)(_TextIds(episodes.table.tasks, encoding.text))
        self._templates: dict[tuple[SampleKind, int, int], RowTemplate] = {}
        counts = [_samples_of(episodes.lengths, _steps_needed(kind, encoding), every) for kind in kinds]
        # The samples of an episode's first kind, then those of its second, then the next episode's.
        self._ends = np.cumsum(np.stack(counts, axis=1).ravel())

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> TokenSequence:
        """Sample ``number`` as ids and labels; TokenError if it is longer than the backbone accepts."""
        return self._groups(np.array([number]))[0].sequence()

    def batch(self, numbers: Iterable[int], *, length_multiple: int = 1) -> Batch:
        """The samples of these numbers as a batch; none make an idle batch.

        Args:
            length_multiple: the length of the batch is rounded up to such a multiple.

        Raises:
            TokenError: one is longer than the backbone accepts.
        """
        groups = self._groups(numbers if isinstance(numbers, np.ndarray) else np.fromiter(numbers, np.int64))
        return assemble(groups, self._encoding.layout, length_multiple=length_multiple)

    def of_kind(self, kind: SampleKind) -> "SampleSet":
        """All samples of a kind that the same episodes have."""
        return SampleSet(self.episodes, self._codes, self._encoding, (kind,), delta_steps=self._delta_steps)

    def place(self, number: int) -> tuple[int, int]:
        """Where sample ``number`` is: the position of its episode in ``episodes``, and its step."""
        _, episode, step = self._place(number)
        return episode, step

    def describe(self, number: int) -> dict[str, str | int]:
        """Sample ``number`` as people find it: its kind, the position of its episode, its step, and the instruction."""
        kind, episode, step = self._place(number)
        return {"number": number, "kind": kind, "episode": episode, "step": step, "task": self.episodes.task(episode)}

    def at(self, kind: SampleKind, episode: int, step: int) -> TokenSequence:
        """The sample of a kind at a step of the episode at that position, as far as the episode has it."""
        return self._group(kind, np.array([0]), np.array([episode]), np.array([step])).sequence()

    def codes(self, episode: int, step: int) -> Codes:
        """The image codes of every camera at a step of the episode at that position, [cameras, R, C]."""
        place = np.array([episode]), np.array([[step]])
        return np.stack([codes.gather(*place).reshape(codes.side, -1) for codes in self._codes])

    def actions(self, episode: int) -> Floats:
        """The actions of the episode at that position in [-1, 1], [T, A]."""
        return self._encoding.action_range.normalise(self.episodes[episode].actions).astype(np.float32)

    def lengths_of(self, numbers: Ints) -> Ints:
        """[n] the number of tokens of each of these samples."""
        kinds, episodes, steps, _ = self._locate(numbers)
        lengths = np.empty(len(numbers), np.int64)
        for kind, seen, own in self._alike(kinds, episodes, steps):
            texts = [len(self._text(kind, task)) for task in self.episodes.task_of[episodes[own]].tolist()]
            lengths[own] = len(self._template(kind, seen).ids) + np.asarray(texts)
        return lengths

    @property
    def samples_per_episode(self) -> Ints:
        """[E] how many samples each episode has."""
        return np.diff(self._ends[len(self._kinds) - 1 :: len(self._kinds)], prepend=0)

    def longest(self, wanted: SampleKind) -> TokenSequence:
        """A sample of a kind that sees as many moments as any; there must be one. Those of an episode are as long."""
        usable = np.flatnonzero(self.episodes.lengths >= _steps_needed(wanted, self._encoding))
        lasts = self.episodes.lengths[usable] - _steps_needed(wanted, self._encoding)
        most = np.argmax(self._number_of_moments(wanted, usable, lasts // self._every * self._every))
        return self.at(wanted, int(usable[most]), int(lasts[most]) // self._every * self._every)

    def _place(self, number: int) -> tuple[SampleKind, int, int]:
        kinds, episodes, steps, _ = self._locate(np.array([number]))
        return self._kinds[int(kinds[0])], int(episodes[0]), int(steps[0])

    def _locate(self, numbers: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """The number of the kind, the episode, the step and the variant of each of these samples."""
        count = len(self) * (1 + self._variants)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
            raise IndexError(f"samples {numbers.min()} to {numbers.max()} of {count}")
        variants, numbers = np.divmod(numbers, max(1, len(self)))
        segments = np.searchsorted(self._ends, numbers, side="right")
        first = np.where(segments > 0, self._ends[segments - 1], 0)
        episodes, kinds = np.divmod(segments, len(self._kinds))
        return kinds, episodes, (numbers - first) * self._every, variants

    def _alike(self, kinds: Ints, episodes: Ints, steps: Ints) -> Iterator[tuple[SampleKind, int, Ints]]:
        """A kind, how many moments its samples see, and which of the samples these are, until all are named."""
        for kind, of_kind in _places_of_each(kinds):
            moments = self._number_of_moments(self._kinds[kind], episodes[of_kind], steps[of_kind])
            for seen, own in _places_of_each(moments):
                yield self._kinds[kind], seen, of_kind[own]

    def _groups(self, numbers: Ints) -> list[RowGroup]:
        """The samples of these numbers, those of one template together."""
        kinds, episodes, steps, variants = self._locate(numbers)
        return [
            self._group(kind, own, episodes[own], steps[own], variants[own])
            for kind, _, own in self._alike(kinds, episodes, steps)
        ]

    def _group(
        self, kind: SampleKind, places: Ints, episodes: Ints, steps: Ints, variants: Ints | None = None
    ) -> RowGroup:
        """The samples of one kind at these steps, which all see as many moments.

        Args:
            places: [n] of the rows in their batch.
            episodes, steps: [n].
            variants: [n] of their images; None: the originals.
        """
        texts = [self._text(kind, task) for task in self.episodes.task_of[episodes].tolist()]
        moments = self._moments(kind, episodes, steps)
        seen = moments if kind == "vla" else np.concatenate([moments, steps[:, None] + 1], axis=1)
        shown = episodes if variants is None else episodes + variants * len(self.episodes)
        images = self._images(shown, seen)
        if kind == "vla":
            chunk, template, contents = self._vla(episodes, steps, images, moments.shape[1])
        else:
            chunk, (template, contents) = None, self._world_model(episodes, moments, images)
        longest = max(texts, key=len)
        check_length(len(template.ids) + len(longest), of_text=1 + len(longest), max_length=self._encoding.max_length)
        return RowGroup(template, places, texts, contents, chunk)

    def _vla(
        self, episodes: Ints, steps: Ints, images: NDArray[np.int32], moments: int
    ) -> tuple[Floats, RowTemplate, Contents]:
        encoding, layout, horizon = self._encoding, self._encoding.layout, self._encoding.horizon
        if len(episodes) == 1:  # the last chunk of an episode may be asked for as far as it goes
            horizon = min(horizon, int(self.episodes.lengths[episodes[0]] - steps[0]))
        raw = self.episodes.gather("actions", episodes, steps[:, None] + np.arange(horizon))
        actions = encoding.action_range.normalise(raw)
        state = np.empty((len(episodes), 0), np.int64)
        if encoding.state_range is not None:
            normalised = encoding.state_range.normalise(self.episodes.gather("states", episodes, steps[:, None])[:, 0])
            state = encoding.bins.encode(normalised, start=layout.state_start)
        contents = Contents(state, images, self._action_ids(actions))
        return actions.astype(np.float32), self._template("vla", moments, chunk=horizon), contents

    def _world_model(self, episodes: Ints, moments: Ints, images: NDArray[np.int32]) -> tuple[RowTemplate, Contents]:
        actions = self._encoding.action_range.normalise(self.episodes.gather("actions", episodes, moments))
        contents = Contents(np.empty((len(episodes), 0), np.int64), images, self._action_ids(actions))
        return self._template("world_model", moments.shape[1]), contents

    def _number_of_moments(self, kind: SampleKind, episodes: Ints, steps: Ints) -> Ints:
        history = self._encoding.history_of(kind)
        if self._encoding.repeats_start:
            return np.full(len(steps), history)
        if self._delta_steps is None or self._encoding.counts_steps(kind):
            return np.minimum(history, steps + 1)
        return np.asarray((self._delta_steps.back(episodes, steps) <= steps[:, None]).sum(axis=1))

    def _moments(self, kind: SampleKind, episodes: Ints, steps: Ints) -> Ints:
        """[n, moments] the steps whose images samples show, oldest first; all show as many."""
        seen = int(self._number_of_moments(kind, episodes[:1], steps[:1])[0])
        if self._delta_steps is None or self._encoding.counts_steps(kind):
            return np.maximum(0, steps[:, None] + np.arange(1 - seen, 1))
        return np.maximum(0, steps[:, None] - self._delta_steps.back(episodes, steps)[:, -seen:])

    def _images(self, episodes: Ints, moments: Ints) -> NDArray[np.int32]:
        """Ids [n, images, R * C] of every camera at each moment."""
        found = np.empty((*moments.shape, len(self._codes), self._codes[0].side ** 2), np.int32)
        for camera, codes in enumerate(self._codes):
            codes.gather(episodes, moments, out=found[:, :, camera])
        return found.reshape(len(episodes), -1, found.shape[-1])

    def _action_ids(self, normalised: NDArray[np.float64]) -> Ids:
        return self._encoding.bins.encode(normalised, start=self._encoding.layout.action_start)

    def _template(self, kind: SampleKind, moments: int, *, chunk: int | None = None) -> RowTemplate:
        """The template of samples that see so many moments; the last chunk of an episode may be shorter than others."""
        steps = self._encoding.horizon if chunk is None else chunk
        if (kind, moments, steps) not in self._templates:
            side = self._codes[0].side
            self._templates[kind, moments, steps] = _template_of(self._encoding, kind, moments, steps, side)
        return self._templates[kind, moments, steps]


def _places_of_each(values: Ints) -> Iterator[tuple[int, Ints]]:
    """Each of the values [n] that occur, and where it does."""
    if len(values) and (values == values[0]).all():
        yield int(values[0]), np.arange(len(values))
        return
    for value in np.unique(values).tolist():
        yield value, np.flatnonzero(values == value)


class _TextIds:
    """The ids of the text of a kind of sample, by the number of its instruction."""

    def __init__(self, tasks: Sequence[str], tokenizer: TextTokenizer) -> None:
        self._tasks, self._tokenizer = tasks, tokenizer

    def __call__(self, kind: SampleKind, task: int) -> Ids:
        return np.asarray(self._tokenizer.encode(_prompt(kind, self._tasks[task])), np.int64)


def _prompt(kind: SampleKind, instruction: str) -> str:
    return WORLD_MODEL_PROMPT if kind == "world_model" else VLA_PROMPT.format(instruction=instruction)


def check_fit(
    source: EpisodeSource,
    episodes: EpisodeList,
    *,
    cameras: Sequence[str],
    action_dim: int,
    state_dim: int | None,
    horizon: int,
) -> None:
    """Raise DataError, one line with the remedy, if the data does not fit the experiment."""
    for camera in cameras:
        if camera not in source.cameras:
            known = ", ".join(source.cameras) or "none"
            raise DataError(f"{source.name}: no camera {camera!r}; data.cameras can name: {known}")
    if source.action_dim != action_dim:
        raise DataError(
            f"{source.name}: actions have {source.action_dim} numbers, action_head.action_dim is {action_dim}"
        )
    if state_dim is not None and source.state_dim != state_dim:
        raise DataError(
            f"{source.name}: states have {source.state_dim} numbers, the experiment's state range has {state_dim}; "
            "correct tokenizer.statistics or set data.use_state: false"
        )
    longest = int(episodes.lengths.max(initial=0))
    if longest < horizon:
        raise DataError(
            f"{source.name}: the longest episode has {longest} steps, fewer than action_head.time_horizon = {horizon}"
        )


def check_lengths(episodes: EpisodeList, encoding: Encoding, kinds: Sequence[SampleKind]) -> None:
    """Raise TokenError if a task's samples are longer than the backbone accepts.

    The length does not depend on the content of the images, so this encodes nothing.
    """
    side = encoding.images.codes_per_side
    for kind in kinds:
        needed = _steps_needed(kind, encoding)
        for task in np.unique(episodes.task_of[episodes.lengths >= needed]).tolist():
            longest = int(episodes.lengths[episodes.task_of == task].max())
            moments = encoding.history_of(kind)
            if not encoding.repeats_start and encoding.counts_steps(kind):  # at deltas it may be fewer, too
                moments = min(moments, longest - needed + 1)
            text = len(encoding.text.encode(_prompt(kind, episodes.table.tasks[task])))
            template = _template_of(encoding, kind, moments, encoding.horizon, side)
            check_length(len(template.ids) + text, of_text=1 + text, max_length=encoding.max_length)


def _steps_needed(kind: SampleKind, encoding: Encoding) -> int:
    """A chunk needs H actions from its step on; the world model needs one step after it."""
    return encoding.horizon if kind == "vla" else 2


def _samples_of(lengths: Ints, needed: int, every: int) -> Ints:
    """How many samples each episode has."""
    counts: Ints = np.maximum(0, lengths - needed + every) // every
    return counts


def _template_of(encoding: Encoding, kind: SampleKind, moments: int, steps: int, side: int) -> RowTemplate:
    """The template of rows that see so many moments, with codes of so many rows and columns.

    Args:
        steps: of the action chunk.
    """
    layout, cameras = encoding.layout, len(encoding.cameras)
    actions = encoding.action_range.dimensions

    def squares(images: NDArray[np.integer]) -> list[Ids]:
        return list(images.astype(np.int64).reshape(-1, side, side))

    def vla(contents: Contents) -> TokenSequence:
        return vla_sequence(
            text=(),
            state=contents.state if encoding.state_range is not None else None,
            images=squares(contents.images),
            action_ids=contents.actions,
            actions=None,
            layout=layout,
            max_length=sys.maxsize,
        )

    def world_model(contents: Contents) -> TokenSequence:
        images = squares(contents.images)
        seen = [images[first : first + cameras] for first in range(0, moments * cameras, cameras)]
        return world_model_sequence(
            text=(),
            history=list(zip(seen, contents.actions, strict=True)),
            next_images=images[moments * cameras :],
            layout=layout,
            max_length=sys.maxsize,
        )

    if kind == "vla":
        states = 0 if encoding.state_range is None else encoding.state_range.dimensions
        images = (moments * cameras, side**2)
        return RowTemplate.of(vla, layout=layout, state=states, images=images, actions=(steps, actions))
    images = ((moments + 1) * cameras, side**2)
    return RowTemplate.of(world_model, layout=layout, state=0, images=images, actions=(moments, actions))
