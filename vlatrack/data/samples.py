"""Training samples from episodes: one for every complete action chunk, and every world-model step.

Legend: T steps of an episode, H steps of a chunk, A / N numbers of an action / a state,
R x C image codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.cache import CodeCache, Codes, FrameEncoder, Progress
from vlatrack.data.episodes import Episode, EpisodeSource
from vlatrack.errors import DataError
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import (
    VLA_PROMPT,
    WORLD_MODEL_PROMPT,
    Ids,
    TokenSequence,
    vla_sequence,
    world_model_sequence,
)
from vlatrack.tokens.text import TextTokenizer

SampleKind = Literal["vla", "world_model"]


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


@dataclass(frozen=True)
class EncodedEpisode:
    """One episode in tokens."""

    prompt: list[int]  # ids of the VLA prompt with its instruction
    states: Ids | None  # [T, N]
    action_ids: Ids  # [T, A]
    actions: NDArray[np.float32]  # [T, A] in [-1, 1]
    codes: tuple[Codes, ...]  # [T, R, C] for each camera
    task: str  # instruction text

    @property
    def length(self) -> int:
        return len(self.actions)


class SampleSet:
    """A map-style torch dataset: samples by index, built on demand from encoded episodes."""

    def __init__(
        self, episodes: Sequence[EncodedEpisode], encoding: Encoding, kinds: Sequence[SampleKind], *, every: int = 1
    ) -> None:
        """
        Args:
            every: a sample starts at every n-th step of an episode.
        """
        self.episodes, self._encoding = episodes, encoding
        self._world_text = encoding.text.encode(WORLD_MODEL_PROMPT)
        self._lengths: dict[tuple[SampleKind, int, int], int] = {}
        self._index: list[tuple[SampleKind, int, int]] = []
        for number, episode in enumerate(episodes):
            for kind in kinds:
                # A chunk needs H actions from its step on; the world model needs one step after it.
                last = episode.length - (encoding.horizon if kind == "vla" else 2)
                self._index.extend((kind, number, step) for step in range(0, last + 1, every))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> TokenSequence:
        """Sample ``number`` as ids and labels; TokenError if it is longer than the backbone accepts."""
        return self.at(*self._index[number])

    def of_kind(self, kind: SampleKind) -> "SampleSet":
        """All samples of a kind that the same episodes have."""
        return SampleSet(self.episodes, self._encoding, (kind,))

    def place(self, number: int) -> tuple[int, int]:
        """Where sample ``number`` is: the position of its episode in ``episodes``, and its step."""
        _, episode, step = self._index[number]
        return episode, step

    def describe(self, number: int) -> dict[str, str | int]:
        """Sample ``number`` as people find it: its kind, the position of its episode, its step, and the instruction."""
        kind, episode, step = self._index[number]
        return {"number": number, "kind": kind, "episode": episode, "step": step, "task": self.episodes[episode].task}

    def at(self, kind: SampleKind, episode: int, step: int) -> TokenSequence:
        """The sample of a kind at a step of the episode at that position, as far as the episode has it."""
        build = self._vla if kind == "vla" else self._world_model
        return build(self.episodes[episode], step)

    def codes(self, episode: int, step: int) -> Codes:
        """The image codes of every camera at a step of the episode at that position, [cameras, R, C]."""
        return np.stack(self._images(self.episodes[episode], step))

    def length_of(self, number: int) -> int:
        """The number of tokens of sample ``number``: the same for all samples of a kind that an episode has, and that
        see as many moments."""
        kind, episode, step = self._index[number]
        key = kind, episode, len(self._moments(step))
        if key not in self._lengths:
            self._lengths[key] = len(self[number].input_ids)
        return self._lengths[key]

    def longest(self, wanted: SampleKind) -> TokenSequence:
        """A sample of a kind that sees as many moments as any; there must be one. Those of an episode are as long."""
        of_kind = [number for number, (kind, _, _) in enumerate(self._index) if kind == wanted]
        return self[max(of_kind, key=lambda number: len(self._moments(self._index[number][2])))]

    def _vla(self, episode: EncodedEpisode, step: int) -> TokenSequence:
        encoding, chunk = self._encoding, slice(step, step + self._encoding.horizon)
        return vla_sequence(
            text=episode.prompt,
            state=None if episode.states is None else episode.states[step],
            images=[image for moment in self._moments(step) for image in self._images(episode, moment)],
            action_ids=episode.action_ids[chunk],
            actions=episode.actions[chunk],
            layout=encoding.layout,
            max_length=encoding.max_length,
        )

    def _world_model(self, episode: EncodedEpisode, step: int) -> TokenSequence:
        encoding = self._encoding
        return world_model_sequence(
            text=self._world_text,
            history=[(self._images(episode, m), episode.action_ids[m]) for m in self._moments(step)],
            next_images=self._images(episode, step + 1),
            layout=encoding.layout,
            max_length=encoding.max_length,
        )

    def _moments(self, step: int) -> list[int]:
        """The steps of the history, oldest first; steps before the start are replaced by the first one, or left out."""
        moments = range(step - self._encoding.history + 1, step + 1)
        if self._encoding.repeats_start:
            return [max(0, moment) for moment in moments]
        return [moment for moment in moments if moment >= 0]

    def _images(self, episode: EncodedEpisode, moment: int) -> list[Codes]:
        return [codes[moment] for codes in episode.codes]


def encode_episodes(
    source: EpisodeSource,
    episodes: Sequence[Episode],
    encoding: Encoding,
    cache: CodeCache,
    progress: Progress | None = None,
) -> list[EncodedEpisode]:
    """Encode episodes that passed ``check_fit``; image codes come from the cache."""
    codes = [cache.codes(source, episodes, camera, encoding.images, progress) for camera in encoding.cameras]
    return [
        _encode(episode, encoding, tuple(camera_codes)) for episode, *camera_codes in zip(episodes, *codes, strict=True)
    ]


def check_fit(
    source: EpisodeSource,
    episodes: Sequence[Episode],
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
    for episode in episodes:
        for name, values in (("actions", episode.actions), ("states", episode.states)):
            if values is not None and not np.isfinite(values).all():
                raise DataError(f"{source.name}: {name} of episode {episode.index} hold NaN or infinity; leave it out")
    longest = max((episode.length for episode in episodes), default=0)
    if longest < horizon:
        raise DataError(
            f"{source.name}: the longest episode has {longest} steps, fewer than action_head.time_horizon = {horizon}"
        )


def check_lengths(episodes: Sequence[Episode], encoding: Encoding, kinds: Sequence[SampleKind]) -> None:
    """Raise TokenError if a task's samples are longer than the backbone accepts.

    The length does not depend on the content of the images, so this uses blank ones and encodes nothing.
    """
    side = encoding.images.codes_per_side
    by_length = sorted(episodes, key=lambda episode: episode.length)  # the longest has the longest history
    of_task = {episode.task: episode for episode in by_length if episode.length >= max(encoding.horizon, 2)}
    for episode in of_task.values():
        blank = np.broadcast_to(np.int64(encoding.layout.first_image_code), (episode.length, side, side))
        samples = SampleSet([_encode(episode, encoding, (blank,) * len(encoding.cameras))], encoding, kinds)
        for kind in kinds:
            samples.longest(kind)


def _encode(episode: Episode, encoding: Encoding, codes: tuple[Codes, ...]) -> EncodedEpisode:
    layout, bins = encoding.layout, encoding.bins
    actions = encoding.action_range.normalise(episode.actions)
    states = None
    if encoding.state_range is not None and episode.states is not None:
        states = bins.encode(encoding.state_range.normalise(episode.states), start=layout.state_start)
    return EncodedEpisode(
        prompt=encoding.text.encode(VLA_PROMPT.format(instruction=episode.task)),
        states=states,
        action_ids=bins.encode(actions, start=layout.action_start),
        actions=actions.astype(np.float32),
        codes=codes,
        task=episode.task,
    )
