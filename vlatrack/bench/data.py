"""What data costs: from the store into batches, in memory, and at a start, beside the way of one pickle a sample.

The data is synthetic: episodes of 100 steps with random numbers, and images of one colour. What is measured is real:
the store on disk, the samples, the batches.
"""

import json
import math
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode
from vlatrack.data.order import epoch_order
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout
from vlatrack.tokens.text import ByteTokenizer

EPISODE_STEPS = 100
ACTIONS, STATES = 7, 8
BATCH_SIZE = 32
_TASKS = 20
_MEASURED_BATCHES = 200


class SyntheticSource:
    """Episodes that are made when they are asked for: nothing of them is in memory."""

    cameras, action_dim, state_dim, fps = ("front", "wrist"), ACTIONS, STATES, 10.0

    def __init__(self, frames: int, *, image_size: int) -> None:
        self.name, self._frames, self._size = f"{frames} synthetic frames", frames, image_size

    def episodes(self) -> Sequence[Episode]:
        return list(self.readable_episodes(lambda index, error: None))

    def readable_episodes(self, on_bad: Callable[[int, DataError], None]) -> Iterator[Episode]:
        for index in range(self._frames // EPISODE_STEPS):
            numbers = np.random.default_rng(index).uniform(-1, 1, (EPISODE_STEPS, ACTIONS + STATES)).astype(np.float32)
            task = f"put the bowl on plate number {index % _TASKS}"
            yield Episode(index, task, numbers[:, :ACTIONS], numbers[:, ACTIONS:])

    def frames(self, episode: Episode, camera: str) -> NDArray[np.uint8]:
        colours = (np.arange(episode.length) + episode.index).astype(np.uint8)[:, None, None, None]
        return np.broadcast_to(colours, (episode.length, self._size, self._size, 3))

    def fingerprint(self) -> str:
        return f"synthetic {self._frames} {self._size}"


class RandomCodes:
    """Stands where an image tokenizer would, whose own cost is measured elsewhere: codes drawn once."""

    def __init__(self, layout: TokenLayout, *, codes_per_side: int) -> None:
        self.codes_per_side = codes_per_side
        shape = (EPISODE_STEPS, codes_per_side, codes_per_side)
        self._codes = np.random.default_rng(0).integers(0, layout.image_codes, shape) + layout.first_image_code

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.int64]:
        return self._codes[: len(frames)]

    def fingerprint(self) -> str:
        return f"random {self.codes_per_side}"


def synthetic_samples(store: TokenStore, frames: int, *, codes_per_side: int, history: int) -> SampleSet:
    """Action chunks of synthetic episodes, from a store, which is filled if it does not have them."""
    layout = TokenLayout()
    source = SyntheticSource(frames, image_size=8)
    images = RandomCodes(layout, codes_per_side=codes_per_side)
    dataset = store.dataset(source)
    episodes = dataset.table.all()
    codes = [
        store.codes(dataset, episodes, camera, images, first_id=layout.first_image_code) for camera in source.cameras
    ]
    encoding = Encoding(
        layout=layout,
        bins=Bins(),
        action_range=ValueRange((-1.0,) * ACTIONS, (1.0,) * ACTIONS),
        state_range=ValueRange((-1.0,) * STATES, (1.0,) * STATES),
        text=ByteTokenizer(layout),
        images=images,
        cameras=source.cameras,
        history=history,
        horizon=5,
        max_length=4096,
    )
    return SampleSet(episodes, codes, encoding, ("vla",))


@dataclass(frozen=True)
class BatchSpeed:
    """Samples into batches, in microseconds a sample, of rounds that were measured in turns."""

    samples: int
    tokens: int  # of a sample
    own_us: tuple[float, ...]
    pickle_us: tuple[float, ...]  # one pickle a sample

    @property
    def ratio(self) -> float:
        """How many times faster, by the medians."""
        return float(np.median(self.pickle_us) / np.median(self.own_us))


def measure_batches(folder: Path, *, samples: int, rounds: int) -> BatchSpeed:
    """Batches of samples of about 1,200 tokens, and the same from one pickle a sample: read, padded, made a tensor."""
    frames = math.ceil(samples / (EPISODE_STEPS - 4)) * EPISODE_STEPS
    data = synthetic_samples(TokenStore(folder / "store"), frames, codes_per_side=16, history=2)
    chosen = np.random.default_rng(0).permutation(len(data))[:samples]
    batches = [chosen[start : start + BATCH_SIZE] for start in range(0, samples, BATCH_SIZE)]
    pickles = folder / "pickles"
    pickles.mkdir()
    for number in chosen.tolist():
        row = data[number]
        content = {"token": row.input_ids.tolist(), "label": row.labels.tolist(), "id": number}
        (pickles / f"{number}.pkl").write_bytes(pickle.dumps(content))
    own, others = list[float](), list[float]()
    for _ in range(rounds):
        own.append(_us_a_sample(data.batch, batches))
        others.append(_us_a_sample(lambda numbers: _batch_of_pickles(pickles, numbers), batches))
    return BatchSpeed(samples, len(data[0].input_ids), tuple(own), tuple(others))


def measure_tokens(folder: Path, *, samples: int) -> float:
    """Samples a second on one core whose images have four codes: what is left is text, state and actions."""
    frames = math.ceil(samples / (EPISODE_STEPS - 4)) * EPISODE_STEPS
    data = synthetic_samples(TokenStore(folder), frames, codes_per_side=2, history=1)
    chosen = np.random.default_rng(0).permutation(len(data))[:samples]
    batches = [chosen[start : start + BATCH_SIZE] for start in range(0, samples, BATCH_SIZE)]
    return 1e6 / min(_us_a_sample(data.batch, batches) for _ in range(3))


def _batch_of_pickles(folder: Path, numbers: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    """As the reference has it: lists of numbers from a file for each sample, padded, and made tensors."""
    rows = []
    for number in numbers.tolist():
        with (folder / f"{number}.pkl").open("rb") as file:
            rows.append(pickle.load(file))  # noqa: S301 - written above
    longest = max(len(row["token"]) for row in rows)
    padding = [longest - len(row["token"]) for row in rows]
    ids = [row["token"] + [0] * more for row, more in zip(rows, padding, strict=True)]
    labels = [row["label"] + [IGNORED_LABEL] * more for row, more in zip(rows, padding, strict=True)]
    return torch.tensor(ids, dtype=torch.int64), torch.tensor(labels, dtype=torch.int64)


def _us_a_sample(batch: Callable[[Any], object], batches: Sequence[Sized]) -> float:
    begin = time.perf_counter()
    for numbers in batches:
        batch(numbers)
    return (time.perf_counter() - begin) / sum(map(len, batches)) * 1e6


@dataclass(frozen=True)
class WarmStart:
    """A new process that opens what the store has, and draws batches all over it."""

    frames: int
    seconds: float  # from the open store to the first batch
    private_mb: float  # more than the process had before
    batch_us: float  # a sample


def measure_warm_start(folder: Path, *, frames: int) -> WarmStart:
    """In a process of its own, after the store has been filled by this one."""
    synthetic_samples(TokenStore(folder), frames, codes_per_side=4, history=1)
    command = [sys.executable, "-m", "vlatrack.bench.data", str(folder), str(frames)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return WarmStart(**json.loads(ended.stdout))


def _start(folder: Path, frames: int) -> WarmStart:
    before, begin = private_mb(), time.perf_counter()
    data = synthetic_samples(TokenStore(folder), frames, codes_per_side=4, history=1)
    order = epoch_order(len(data), batch_size=BATCH_SIZE, seed=0, epoch=0)
    data.batch(order[0])
    seconds = time.perf_counter() - begin
    batch_us = _us_a_sample(data.batch, order[1 : 1 + _MEASURED_BATCHES])
    return WarmStart(frames, seconds, private_mb() - before, batch_us)


def private_mb() -> float:
    """Memory that no file backs, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return kilobytes / 1024


if __name__ == "__main__":
    print(json.dumps(vars(_start(Path(sys.argv[1]), int(sys.argv[2])))))
