"""Reads RLDS datasets: a folder of TFRecord files, one record an episode."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlatrack.data.digests import content_fingerprint, digests_of
from vlatrack.data.episodes import PIECE_BYTES, Episode
from vlatrack.data.formats.rlds.example import Example
from vlatrack.data.formats.rlds.layout import FEATURES, INFO, STEPS, Feature, builder_folder, read_layout
from vlatrack.data.formats.rlds.records import DamagedRecordError, OpenRecords, RecordFile
from vlatrack.errors import DataError

FLAGS = ("is_first", "is_last")

Names = str | Sequence[str]


class RldsDataset:
    """A split of a dataset as TensorFlow Datasets prepares it, in the layout of RLDS, as an EpisodeSource.

    Its cameras are the colour images of a step, such as `observation/image`. Each record is read once to compare it
    with its checksum; frames are then read by their place in it.

    Args:
        path: the folder that holds dataset_info.json, or the one above it if it has one version.
        split: as dataset_info.json names it.
        action: feature of a step with the action, or several that are put behind each other.
        state: the same for the proprioceptive state; None: the dataset is used without.
        instruction: feature of a step with the instruction.
        fps: time steps in a second, which RLDS does not store.

    Raises:
        DataError: no such folder, split or feature. Reading raises it too: damaged files, records that are no
            episode, episodes with several instructions.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: float,
        split: str = "train",
        action: Names = "action",
        state: Names | None = "observation/state",
        instruction: str = "language_instruction",
    ) -> None:
        self.root, self.name, self.fps = builder_folder(Path(path)), str(path), float(fps)
        self._layout = read_layout(self.root, split)
        self._files = [RecordFile(file, count) for file, count in self._layout.files]
        self._ends = list(accumulate(file.count for file in self._files))
        self._action, self._state = _as_tuple(action), () if state is None else _as_tuple(state)
        self._check_text(instruction)
        self._instruction = instruction
        self.action_names = tuple(name for feature in self._action for name in self._number_names(feature))
        self.action_dim = len(self.action_names)
        self.state_names = tuple(name for feature in self._state for name in self._number_names(feature))
        self.state_dim = len(self.state_names)
        self.cameras = tuple(name for name, feature in self._layout.steps.items() if feature.is_camera)

    def episodes(self) -> Sequence[Episode]:
        """All episodes; read once."""
        return self._episodes

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        """The episodes in the order of the files; keeps none of them."""
        for file, end in zip(self._files, self._ends, strict=True):
            first = end - file.count
            try:
                records = file.open()
            except DataError as error:
                for index in range(first, end):
                    on_bad(index, error)
                continue
            with records:
                for number in range(file.count):
                    try:
                        with self._telling(file, first + number):
                            episode = self._read(records, number, first + number)
                    except DataError as error:
                        on_bad(first + number, error)
                    else:
                        yield episode
                records.check_end()

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        """The frames of one episode, [T, height, width, 3], RGB."""
        return np.concatenate(list(self.stream_frames(episode, camera, 0, episode.length)))

    def stream_frames(self, episode: Episode, camera: str, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """The frames of the steps from `start` to before `stop`, in pieces of at most about `PIECE_BYTES`."""
        self._check_camera(camera)
        file, number = self._place(episode.index)
        with self._telling(file, episode.index), file.open() as records:
            example = Example(records.record(number))
            spans = example.spans(f"{STEPS}/{camera}")
            if len(spans) != episode.length:
                raise DamagedRecordError(f"{len(spans)} images of {camera} in {episode.length} steps")
            expected = self._layout.steps[camera].shape  # -1: any, and then that of the first one
            held: list[NDArray[np.uint8]] = []
            for step in range(start, stop):
                frame = _decode(example.content(spans[step]), f"image {step} of {camera}")
                if min(expected) < 0:
                    expected = frame.shape
                if frame.shape != expected:
                    raise DamagedRecordError(
                        f"image {step} of {camera} is {list(frame.shape)}, expected {list(expected)}"
                    )
                held.append(frame)
                if len(held) == max(1, PIECE_BYTES // frame.nbytes) or step == stop - 1:
                    yield np.stack(held)
                    held = []

    def frame_files(self, episode: Episode, camera: str, start: int, stop: int) -> Sequence[Path]:
        """The file of an episode."""
        return [self._place(episode.index)[0].path]

    def image_size(self, camera: str) -> tuple[int, int]:
        """Height and width in pixels, from features.json, or of the first image that can be read."""
        self._check_camera(camera)
        height, width, _ = self._layout.steps[camera].shape
        if min(height, width) > 0:
            return height, width
        wrong = DataError(f"{self.name}: no episode in it; give another split")
        for index in range(self._ends[-1]):
            file, number = self._place(index)
            try:
                with self._telling(file, index), file.open() as records:
                    example = Example(records.record(number))
                    spans = example.spans(f"{STEPS}/{camera}")
                    if not spans:
                        raise DamagedRecordError(f"no image of {camera}")
                    found = _decode(example.content(spans[0]), f"image 0 of {camera}")
                    return found.shape[0], found.shape[1]
            except DataError as error:
                wrong = error
        raise wrong

    @property
    def features(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of what is put together for an action, and for a state."""
        return self._action, self._state

    def fingerprint(self) -> str:
        """SHA-256 over dataset_info.json, features.json and the files of the split."""
        return content_fingerprint(self._file_digests)

    def file_digests(self) -> Mapping[str, str]:
        """SHA-256 of each of these files."""
        return self._file_digests

    @cached_property
    def _file_digests(self) -> dict[str, str]:
        files = [self.root / INFO, self.root / FEATURES, *(file.path for file in self._files)]
        return digests_of(self.root, files)

    @cached_property
    def _episodes(self) -> tuple[Episode, ...]:
        return tuple(self.readable_episodes(_raise))

    def _place(self, index: int) -> tuple[RecordFile, int]:
        """The file of an episode, and its number in it."""
        if not 0 <= index < self._ends[-1]:
            raise DataError(f"{self.name}: no episode {index}; it has {self._ends[-1]}")
        which = bisect_right(self._ends, index)
        return self._files[which], index - (self._ends[which - 1] if which else 0)

    @contextmanager
    def _telling(self, file: RecordFile, index: int) -> Iterator[None]:
        """Say where the damage is."""
        try:
            yield
        except DamagedRecordError as error:
            raise DataError(f"{file.path}: episode {index}: {error}; restore the file") from None

    def _read(self, records: OpenRecords, number: int, index: int) -> Episode:
        example = Example(records.record(number))
        actions = self._matrix(example, self._action)
        states = self._matrix(example, self._state) if self._state else None
        if len(actions) == 0:
            raise DamagedRecordError("it has no steps")
        if states is not None and len(states) != len(actions):
            raise DamagedRecordError(f"{len(states)} states in {len(actions)} steps")
        self._check_flags(example, len(actions))
        return Episode(index, self._task(example, len(actions)), actions, states)

    def _matrix(self, example: Example, names: Sequence[str]) -> NDArray[np.float32]:
        """[T, size] of some features, put behind each other."""
        parts = []
        for name in names:
            size = len(self._number_names(name))
            numbers = example.numbers(f"{STEPS}/{name}").astype(np.float32)
            if len(numbers) % size:
                raise DamagedRecordError(f"{len(numbers)} numbers of {name}, not {size} in each step")
            if not np.isfinite(numbers).all():
                raise DamagedRecordError(f"{name} has numbers that are not finite")
            parts.append(numbers.reshape(-1, size))
        if len({len(part) for part in parts}) > 1:
            lengths = ", ".join(f"{len(part)} of {name}" for name, part in zip(names, parts, strict=True))
            raise DamagedRecordError(f"features of different lengths: {lengths}")
        return np.concatenate(parts, axis=1)

    def _check_flags(self, example: Example, length: int) -> None:
        """A record is one episode: `is_first` holds at its beginning and `is_last` at its end, where they are stored.

        Some datasets set them in several steps there.
        """
        for name in FLAGS:
            if name not in self._layout.steps:
                continue
            flags = example.numbers(f"{STEPS}/{name}").astype(bool)
            changes = np.diff(flags.astype(int))
            if len(flags) != length:
                raise DamagedRecordError(f"{len(flags)} values of {name} in {length} steps")
            if (changes > 0).any() if name == "is_first" else (changes < 0).any():
                raise DamagedRecordError(f"{name} holds in the middle: the steps are out of order, or several episodes")

    def _task(self, example: Example, length: int) -> str:
        spans = example.spans(f"{STEPS}/{self._instruction}")
        if len(spans) != length:
            raise DamagedRecordError(f"{len(spans)} instructions in {length} steps")
        texts = {example.content(span) for span in spans}
        if len(texts) != 1:
            raise DamagedRecordError(f"{len(texts)} different instructions; vlatrack needs exactly one an episode")
        try:
            task = texts.pop().decode().strip()
        except UnicodeDecodeError:
            raise DamagedRecordError(f"{self._instruction} is no text in UTF-8") from None
        if not task:
            raise DamagedRecordError(f"{self._instruction} is empty")
        return task

    def _number_names(self, name: str) -> tuple[str, ...]:
        """One for each number of a feature; raises DataError if it is no vector of numbers."""
        feature = self._layout.steps.get(name)
        if feature is None or feature.size is None:
            known = [other for other, found in self._layout.steps.items() if found.size]
            raise DataError(f"{self.name}: {_found(name, feature)}; its number features: {', '.join(known) or 'none'}")
        last = name.rpartition("/")[2]
        return (last,) if feature.size == 1 else tuple(f"{last} {number}" for number in range(feature.size))

    def _check_text(self, name: str) -> None:
        feature = self._layout.steps.get(name)
        if feature is None or feature.kind != "text":
            known = [other for other, found in self._layout.steps.items() if found.kind == "text"]
            raise DataError(f"{self.name}: {_found(name, feature)}; its text features: {', '.join(known) or 'none'}")

    def _check_camera(self, camera: str) -> None:
        if camera not in self.cameras:
            raise DataError(f"{self.name}: no camera {camera!r}; its cameras: {', '.join(self.cameras) or 'none'}")


def _as_tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _found(name: str, feature: Feature | None) -> str:
    return f"no feature {name!r}" if feature is None else f"feature {name!r} is {feature.kind} {list(feature.shape)}"


def _raise(_: int, error: DataError) -> None:
    raise error


def _decode(content: bytes, what: str) -> NDArray[np.uint8]:
    if not content:
        raise DamagedRecordError(f"{what} is empty")
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DamagedRecordError(f"{what}: damaged ({reason})") from None
