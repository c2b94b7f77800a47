"""Predicted beside recorded actions of whole episodes, chunk after chunk, in the units of the data.

Legend: T steps of an episode, H steps of a chunk, A numbers of an action.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from vlatrack.data.episodes import Episode
from vlatrack.data.samples import SampleSet
from vlatrack.inference.decoding import decode_blocks, head_actions, prefill
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.bins import ValueRange, decode_ids


@dataclass(frozen=True)
class Trajectory:
    """One recorded episode, and what the policy would have done at each of its steps.

    At every H-th step the policy sees the recorded observation and predicts a chunk, so errors do not add up over time.
    Of the last, which must lie inside the episode, only those steps are taken that no other chunk has.
    """

    episode: int  # in its dataset
    task: str
    starts: tuple[int, ...]  # steps at which a chunk was predicted
    recorded: NDArray[np.float64]  # [T, A]
    head: NDArray[np.float64]  # [T, A], by the continuous head
    tokens: NDArray[np.float64]  # [T, A], by freely decoded tokens


def choose_episodes(episodes: Iterable[Episode], count: int, *, horizon: int) -> list[int]:
    """Positions of the first episode of each task, then of the second of each, and so on; only those with a chunk."""
    nth_of_task: dict[str, int] = {}
    turns = []
    for position, episode in enumerate(episodes):
        if episode.length >= horizon:
            nth_of_task[episode.task] = nth_of_task.get(episode.task, 0) + 1
            turns.append((nth_of_task[episode.task], position))
    return [position for _, position in sorted(turns)[:count]]


def chunk_starts(length: int, horizon: int) -> tuple[int, ...]:
    """The steps at which chunks begin that cover an episode; the last two may overlap."""
    starts = range(0, length - horizon + 1, horizon)
    rest = length % horizon
    return (*starts, length - horizon) if rest else tuple(starts)


@torch.no_grad()
def predict_trajectory(
    policy: VlaPolicy,
    samples: SampleSet,
    position: int,
    accelerator: Accelerator,
    *,
    index: int,
    actions: NDArray[np.float32],
    action_range: ValueRange,
    batch_size: int,
) -> Trajectory:
    """The trajectory of the episode at ``position`` of the samples' episodes.

    Args:
        index: of the episode in its dataset.
        actions: the recorded ones, [T, A] in the units of the data.
        action_range: maps predictions to these units.
        batch_size: chunks that are predicted together.
    """
    starts = chunk_starts(len(actions), policy.action_head.time_horizon)
    prompts = [samples.at("vla", position, start).prompt for start in starts]
    chunks: dict[str, list[Tensor]] = {"head": [], "tokens": []}
    for first in range(0, len(prompts), batch_size):
        with accelerator.autocast():
            prompted = prefill(policy, prompts[first : first + batch_size], keep=True)
            chunks["head"].append(head_actions(policy, prompted))
            ids = decode_blocks(policy, prompted)
        chunks["tokens"].append(decode_ids(ids, policy.centres, start=policy.layout.action_start))
    predicted = {
        route: action_range.denormalise(_joined(torch.cat(parts), starts, len(actions)))
        for route, parts in chunks.items()
    }
    task = samples.episodes.task(position)
    return Trajectory(index, task, starts, actions.astype(np.float64), predicted["head"], predicted["tokens"])


def _joined(chunks: Tensor, starts: Sequence[int], length: int) -> NDArray[np.float64]:
    """Chunks [starts, H, A] as one series [T, A]; where two overlap the earlier one counts."""
    values = chunks.double().cpu().numpy()
    joined = np.empty((length, values.shape[2]))
    for start, chunk in reversed(list(zip(starts, values, strict=True))):
        joined[start : start + len(chunk)] = chunk
    return joined
