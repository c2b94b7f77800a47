"""How much of where things are image tokens still tell: a linear probe on them beside one on the pixels.

A probe is ridge regression in closed form from what is seen of a frame to numbers of the state, such as the position of
the hand. Episodes are dealt to folds; each fold is predicted by what was fitted to the others, codebook included, and
the strength of the ridge is chosen on a part of those.

Legend: N frames, Y numbers that are read, M frames a probe is fitted to, F folds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.episodes import Episode, EpisodeSource, frame_pieces
from vlatrack.data.progress import wanted_progress
from vlatrack.errors import DataError
from vlatrack.tokens.images import FittedEncoder, ImageTokenizer
from vlatrack.tokens.layout import PIXELS_PER_CODE, TokenLayout
from vlatrack.tokens.vq_decoder import VqDecoder

Floats = NDArray[np.floating[Any]]
Kernel = NDArray[np.float64]  # [N, N] products of what is seen of two frames

Fit = Callable[[NDArray[np.uint8]], ImageTokenizer]
"""From training frames to a tokenizer with a decoder."""

_RIDGES = 10.0 ** np.arange(-5, 4)
"""Relative to the mean eigenvalue of the kernel."""


@dataclass(frozen=True)
class ProbeFrames:
    """Frames of one size with what is to be read from them."""

    frames: NDArray[np.uint8]  # [N, height, width, 3]
    targets: NDArray[np.float64]  # [N, Y]
    episodes: NDArray[np.int64]  # [N] which episode each is of


@dataclass(frozen=True)
class Reading:
    """Mean distance of what a probe reads from what it should, of each fold."""

    of_folds: NDArray[np.float64]  # [F], in the unit of the targets

    @property
    def mean(self) -> float:
        return float(self.of_folds.mean())

    def ratio(self, other: "Reading") -> NDArray[np.float64]:
        """Of each fold [F], to another reading of the same folds."""
        return self.of_folds / other.of_folds


@dataclass(frozen=True)
class Probed:
    """What can be read from the frames of one size, and from their codes."""

    blind: Reading  # the mean of the other folds, whatever is seen
    pixels: Reading  # of the size that is encoded
    ids: Reading  # which id is where: what a policy with a vector for each id begins with
    looks: Reading  # the pixels that codes stand for: what it can learn about the ids


def fitted(*, image_size: int, codebook_size: int, encoder: FittedEncoder, seed: int) -> Fit:
    """A tokenizer from scratch, as a training fits it; DataError if the codes do not suffice."""
    places = (image_size // PIXELS_PER_CODE) ** 2
    if encoder == "projections" and codebook_size % places:
        raise DataError(
            f"{codebook_size} codes: projections has codes of its own for each of {places} places of {image_size} "
            f"pixels: choose a multiple of {places}"
        )

    def fit(frames: NDArray[np.uint8]) -> ImageTokenizer:
        tokenizer = ImageTokenizer.fit(
            frames,
            image_size=image_size,
            codebook_size=codebook_size,
            seed=seed,
            layout=TokenLayout(),
            encoder=encoder,
        )
        tokenizer.fit_decoder(frames)
        return tokenizer

    return fit


def stored(folder: Path) -> Fit:
    """The tokenizer of a run or a checkpoint, which stays as it is; CheckpointError if it cannot be read."""
    tokenizer = ImageTokenizer.load(folder)

    def fit(frames: NDArray[np.uint8]) -> ImageTokenizer:
        if not isinstance(tokenizer.decoder, VqDecoder):
            tokenizer.fit_decoder(frames)
        return tokenizer

    return fit


def probe_frames(
    source: EpisodeSource, episodes: Sequence[Episode], camera: str, *, numbers: Sequence[int], count: int
) -> ProbeFrames:
    """About `count` frames, evenly spread over the episodes, with these numbers of the state.

    Raises:
        DataError: there is no such camera or number, or frames cannot be read.
    """
    if camera not in source.cameras:
        raise DataError(f"{source.name}: no camera {camera!r}; its cameras: {', '.join(source.cameras) or 'none'}")
    if not numbers or min(numbers) < 0 or max(numbers) >= source.state_dim:
        raise DataError(f"{source.name}: its state has {source.state_dim} numbers; choose some of them, from 0 on")
    every = max(1, sum(episode.length for episode in episodes) // count)
    frames, targets, groups, passed = [], [], [], 0
    progress = wanted_progress()
    for number, episode in enumerate(episodes):
        progress("reading frames", number, len(episodes), unit="episode", is_brief=True)
        assert episode.states is not None, "a dataset with state_dim has states"
        chosen = np.arange(-passed % every, episode.length, every)
        passed += episode.length
        start = 0
        for piece in frame_pieces(source, episode, camera):
            inside = chosen[(chosen >= start) & (chosen < start + len(piece))]
            frames.append(piece[inside - start])
            start += len(piece)
        targets.append(episode.states[chosen][:, list(numbers)].astype(np.float64))
        groups.append(np.full(len(chosen), episode.index))
    found = ProbeFrames(np.concatenate(frames), np.concatenate(targets), np.concatenate(groups))
    if not np.isfinite(found.targets).all():
        raise DataError(f"{source.name}: states hold NaN or infinity; `vlatrack data info` shows which numbers")
    return found


def probe(
    seen: ProbeFrames,
    fit: Fit,
    *,
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Probed:
    """Probe a tokenizer.

    Args:
        fit: called once for each fold, with the frames of the others.
        progress: told how many folds are done.

    Raises:
        DataError: there are fewer episodes than folds.
    """
    fold_of = _folds(seen.episodes, folds, seed)
    readings: dict[str, list[float]] = {name: [] for name in ("blind", "pixels", "ids", "looks")}
    for fold in range(folds):
        tokenizer = fit(seen.frames[fold_of != fold])
        ids = tokenizer.encode(seen.frames)
        kernels = {
            "pixels": _products(tokenizer.resized(seen.frames)),
            "ids": _agreements(ids),
            "looks": _products(tokenizer.decode(ids)),
        }
        for name, kernel in kernels.items():
            readings[name].append(_error(kernel, seen.targets, fold_of, fold))
        test = fold_of == fold
        readings["blind"].append(_distance(seen.targets[~test].mean(axis=0), seen.targets[test]))
        progress(fold + 1)
    return Probed(**{name: Reading(np.array(values)) for name, values in readings.items()})


def _folds(episodes: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold [N] of each frame: that of its episode."""
    found, number = np.unique(episodes, return_inverse=True)
    if len(found) < max(folds, 3):
        raise DataError(f"{len(found)} episodes cannot be dealt to {folds} folds; take fewer folds, 3 or more")
    dealt = np.arange(len(found)) % folds
    np.random.default_rng(seed).shuffle(dealt)
    return dealt[number]


def _error(kernel: Kernel, targets: NDArray[np.float64], fold_of: NDArray[np.int64], fold: int) -> float:
    """Of the frames of a fold; the ridge that is best for the next fold is taken."""
    folds = int(fold_of.max()) + 1
    test, inner = fold_of == fold, fold_of == (fold + 1) % folds
    trials = _predictions(kernel, targets, ~test & ~inner, inner, _RIDGES)
    best = int(np.argmin([_distance(trial, targets[inner]) for trial in trials]))
    (predicted,) = _predictions(kernel, targets, ~test, test, _RIDGES[best : best + 1])
    return _distance(predicted, targets[test])


def _predictions(
    kernel: Kernel, targets: NDArray[np.float64], train: NDArray[np.bool_], test: NDArray[np.bool_], ridges: Floats
) -> list[NDArray[np.float64]]:
    """Ridge regression with an intercept, by the eigenvectors of the kernel of the training frames [M, M]."""
    known, unknown = kernel[np.ix_(train, train)], kernel[np.ix_(test, train)]
    mean = known.mean(axis=0)
    unknown = unknown - unknown.mean(axis=1, keepdims=True) - mean + mean.mean()
    values, vectors = np.linalg.eigh(known - mean - mean[:, None] + mean.mean())
    middle = targets[train].mean(axis=0)
    turned = vectors.T @ (targets[train] - middle)
    scale = max(float(values.mean()), np.finfo(np.float64).tiny)
    seen = unknown @ vectors
    return [seen @ (turned / (values.clip(0) + ridge * scale)[:, None]) + middle for ridge in ridges]


def _products(images: NDArray[np.uint8]) -> Kernel:
    values = images.reshape(len(images), -1).astype(np.float32) / 255
    values -= values.mean(axis=0)
    return (values @ values.T).astype(np.float64)


def _agreements(ids: NDArray[np.int64]) -> Kernel:
    """In how many places two images have the same id: the products of their one-hot vectors."""
    flat = ids.reshape(len(ids), -1)
    same = np.zeros((len(flat), len(flat)))
    for place in flat.T:
        same += place[:, None] == place
    return same


def _distance(predicted: Floats, targets: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(predicted - targets, axis=1).mean())
