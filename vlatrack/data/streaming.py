"""Samples whose images are read and encoded while a policy trains, instead of once before.

A worker reads the frames that its samples show and hands them on as pixels. The process that trains encodes those of a
batch together, on the device of the image tokenizer, and writes their ids into the places that were left blank.

Legend: B rows, S positions, V supervised positions, M images of a row, K codes of an image, N images of a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlatrack.data.deltas import DeltaSteps
from vlatrack.data.samples import Encoding, SampleKind, SampleSet
from vlatrack.data.store.episode_table import EpisodeList, Ints
from vlatrack.data.store.image_codes import FrameEncoder
from vlatrack.data.streamed_frames import Frames, StreamedFrames
from vlatrack.tokens.batch import Batch

BLANK = -1
"""Stands where the id of a code will be."""


@runtime_checkable
class TensorEncoder(FrameEncoder, Protocol):
    """What streaming needs of an image tokenizer."""

    @property
    def code_ids(self) -> NDArray[np.int64]: ...

    def encode_tensors(self, frames: Iterable[Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class Pixels:
    """Images of any sizes in one tensor: each tensor that a worker hands over takes it a file descriptor."""

    values: Tensor  # uint8, of one image after another
    sizes: tuple[tuple[int, int, int], ...]  # number, height and width of images of one size that follow one another

    @classmethod
    def of(cls, images: Sequence[Frames]) -> Self:
        """Images [height, width, 3] in their order."""
        by_size = groupby(image.shape[:2] for image in images)
        sizes = tuple((sum(1 for _ in alike), height, width) for (height, width), alike in by_size)
        flat = [image.ravel() for image in images]
        return cls(torch.from_numpy(np.concatenate(flat) if flat else np.empty(0, np.uint8)), sizes)

    def parts(self) -> Iterator[Tensor]:
        """The images in parts of one size, uint8 [n, height, width, 3]."""
        start = 0
        for shape in self.sizes:
            stop = start + 3 * shape[0] * shape[1] * shape[2]
            yield self.values[start:stop].view(*shape, 3)
            start = stop


@dataclass(frozen=True)
class UnencodedBatch:
    """A batch with blanks, and the images that belong there, in the order of the blanks."""

    batch: Batch
    pixels: Pixels
    blanks: Tensor  # int64 [N * K] flat positions b * S + t in its rows
    answers: Tensor  # int64 [J] where in V a blank is predicted
    answered: Tensor  # int64 [J] which of the blanks that is

    def pin_memory(self) -> Self:
        """This batch in pinned memory (called by torch's DataLoader)."""
        return replace(
            self,
            batch=self.batch.pin_memory(),
            pixels=replace(self.pixels, values=self.pixels.values.pin_memory()),
            blanks=self.blanks.pin_memory(),
            answers=self.answers.pin_memory(),
            answered=self.answered.pin_memory(),
        )


class StreamedSamples(SampleSet):
    """Samples of episodes whose images are not encoded. What is asked for alone is encoded at once; see `encoded`."""

    def __init__(
        self,
        episodes: EpisodeList,
        frames: StreamedFrames,
        encoding: Encoding,
        kinds: Sequence[SampleKind],
        *,
        every: int = 1,
        variants: int = 0,
        delta_steps: DeltaSteps | None = None,
    ) -> None:
        """
        Args:
            frames: of these episodes.
            every, variants, delta_steps: as of `SampleSet`.
        """
        images = encoding.images
        assert isinstance(images, TensorEncoder), images
        codes = [_CodesOnDemand(frames, camera, images) for camera in encoding.cameras]
        super().__init__(episodes, codes, encoding, kinds, every=every, variants=variants, delta_steps=delta_steps)
        blank = [_BlankCodes(images.codes_per_side) for _ in encoding.cameras]
        self._blank = SampleSet(
            episodes, blank, encoding, kinds, every=every, variants=variants, delta_steps=delta_steps
        )
        self._frames, self._images_encoder = frames, images
        self._weights_all_codes = len(images.code_ids) == self._count_weighted(images.code_ids)

    def unencoded(self, numbers: Iterable[int], *, length_multiple: int = 1) -> UnencodedBatch:
        """The samples of these numbers, for `encoded`; needs no device.

        Raises:
            DataError: frames cannot be read, or the dataset has changed.
            TokenError: a sample is longer than the backbone accepts.
        """
        chosen = np.fromiter(numbers, np.int64)
        batch = self._blank.batch(chosen, length_multiple=length_multiple)
        blanks = np.flatnonzero(batch.input_ids.numpy() == BLANK)
        answers = np.flatnonzero(batch.targets.numpy() == BLANK)
        answered = np.searchsorted(blanks, batch.supervised.numpy()[answers] + 1)
        pixels = Pixels.of(self._images_of(chosen))
        return UnencodedBatch(batch, pixels, *map(torch.from_numpy, (blanks, answers, answered)))

    def encoded(self, unencoded: UnencodedBatch) -> Batch:
        """The batch with the ids of its images, on the device of the image tokenizer.

        Nothing waits for that device, but for a batch that answers with images where some codes are not among those
        that `image_token_weight` is about, which have to be counted.
        """
        if not len(unencoded.blanks):
            return unencoded.batch
        ids = self._images_encoder.encode_tensors(unencoded.pixels.parts()).flatten()
        batch = unencoded.batch.to(ids.device)
        blanks, answers, answered = (
            index.to(ids.device, non_blocking=True)
            for index in (unencoded.blanks, unencoded.answers, unencoded.answered)
        )
        answer_ids = ids[answered]
        batch.input_ids.view(-1).index_copy_(0, blanks, ids)
        batch.targets.index_copy_(0, answers, answer_ids)
        weighted = len(answers)
        if weighted and not self._weights_all_codes:
            weighted = self._count_weighted(answer_ids)
        return replace(batch, weighted_targets=batch.weighted_targets + weighted)

    def _count_weighted(self, ids: NDArray[np.int64] | Tensor) -> int:
        """How many are among the ids that `image_token_weight` is about."""
        layout = self._encoding.layout
        return int(((ids >= layout.weighted_first) & (ids <= layout.weighted_last)).sum())

    def _images_of(self, numbers: Ints) -> list[Frames]:
        """The images [height, width, 3] of samples, in the order in which their rows have them."""
        kinds, episodes, steps, variants = self._locate(numbers)
        shown = episodes + variants * len(self.episodes)
        by_row: list[list[Frames]] = [[] for _ in numbers]
        for kind, _, own in self._alike(kinds, episodes, steps):
            moments = self._moments(kind, episodes[own], steps[own])
            if kind == "world_model":
                moments = np.concatenate([moments, steps[own][:, None] + 1], axis=1)
            for row, episode, seen in zip(own.tolist(), shown[own].tolist(), moments, strict=True):
                by_camera = [self._frames.read(episode, camera, seen) for camera in self._encoding.cameras]
                by_row[row] = [image for moment in zip(*by_camera, strict=True) for image in moment]
        return [image for row in by_row for image in row]


@dataclass(frozen=True)
class _CodesOnDemand:
    """The codes of one camera, encoded when they are asked for; see `ImageIds`."""

    frames: StreamedFrames
    camera: str
    encoder: TensorEncoder

    @property
    def side(self) -> int:
        return self.encoder.codes_per_side

    def gather(self, numbers: Ints, steps: Ints, *, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        pairs = zip(numbers.tolist(), steps, strict=True)
        read = [torch.from_numpy(self.frames.read(number, self.camera, seen)) for number, seen in pairs]
        found = np.empty((*steps.shape, self.side**2), np.int32) if out is None else out
        found[:] = self.encoder.encode_tensors(read).cpu().numpy().reshape(found.shape)
        return found


@dataclass(frozen=True)
class _BlankCodes:
    """No codes yet; see `ImageIds`."""

    side: int

    def gather(self, numbers: Ints, steps: Ints, *, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        found = np.empty((*steps.shape, self.side**2), np.int32) if out is None else out
        found[:] = BLANK
        return found
