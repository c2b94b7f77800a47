"""A batch of token rows, with an index of everything that the losses read.

Which positions are supervised, and which of them belong to which action step, is known before anything reaches the
device. Indexing it here avoids data-dependent shapes, and so synchronisation, on the device.

Legend: B rows, S positions, V supervised positions, R rows whose answer is an action chunk,
H steps of the chunk, A numbers of an action.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout
from vlatrack.tokens.prompts import Ids, TokenSequence

IMAGE_SLOTS = 10  # answer images are numbered right-aligned in these slots


@dataclass(frozen=True)
class Batch:
    """Right-padded rows and their supervision. Tensors are int64 unless noted otherwise."""

    input_ids: Tensor  # [B, S]
    supervised: Tensor  # [V] flat positions b * S + t that predict a label at t + 1
    targets: Tensor  # [V] those labels
    action_rows: Tensor  # [R]
    prompt_lengths: Tensor  # [R] positions before the first action block of the answer
    action_index: Tensor  # [R, H, A] where in V each number of the chunk is predicted
    image_index: Tensor  # [I] where in V each token of an answer image is predicted
    image_slot: Tensor  # [I] the slot (0..9) of that image
    actions: Tensor | None  # float32 [R, H, A] in [-1, 1], before binning
    longest_prompt: int  # max of prompt_lengths, 0 without action rows
    weighted_targets: int  # number of targets to which image_token_weight applies
    tokens: int  # positions that are not padding

    @property
    def is_idle(self) -> bool:
        """Whether it holds no sample: see ``collate``."""
        return self.tokens == 0

    @property
    def rows(self) -> int:
        return self.input_ids.shape[0]

    @property
    def horizon(self) -> int:
        return self.action_index.shape[1]

    def to(self, device: torch.device | str) -> Self:
        """This batch on ``device``, copied asynchronously from pinned memory."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """This batch in pinned memory (called by torch's DataLoader)."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def collate(sequences: Sequence[TokenSequence], layout: TokenLayout, *, length_multiple: int = 1) -> Batch:
    """Pad the sequences on the right to one batch and index their supervision.

    The batch is as long as its longest sequence, rounded up to ``length_multiple`` positions.

    No sequences make an idle batch: one row without any supervision, on which a rank without samples joins the others
    in a forward and backward pass.
    """
    if not sequences:
        idle = np.array([[layout.bos, *[layout.pad] * (length_multiple - 1)]], np.int64)
        return index_rows(idle, np.full_like(idle, IGNORED_LABEL), layout, tokens=0)
    longest = max(len(sequence.input_ids) for sequence in sequences)
    length = -(-longest // length_multiple) * length_multiple
    input_ids = np.full((len(sequences), length), layout.pad, np.int64)
    labels = np.full((len(sequences), length), IGNORED_LABEL, np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence.input_ids)] = sequence.input_ids
        labels[row, : len(sequence.labels)] = sequence.labels
    chunks = [sequence.actions for sequence in sequences if sequence.actions is not None]
    tokens = sum(len(sequence.input_ids) for sequence in sequences)
    return index_rows(input_ids, labels, layout, actions=np.stack(chunks) if chunks else None, tokens=tokens)


def index_rows(
    input_ids: Ids,
    labels: Ids,
    layout: TokenLayout,
    *,
    actions: NDArray[np.float32] | None = None,
    tokens: int | None = None,
) -> Batch:
    """Index the supervision of padded rows.

    Args:
        input_ids: [B, S].
        labels: [B, S], -100 at positions without a label.
        actions: the chunks of the rows with action labels before binning, [R, H, A], if known.
        tokens: number of positions that are not padding; None: all.

    All action rows must have the same number of steps and dimensions.
    """
    valid = np.zeros(labels.shape, bool)
    valid[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    order = (np.cumsum(valid) - 1).reshape(valid.shape)  # index in V of a supervised position
    targets = labels[:, 1:][valid[:, :-1]]

    rows, prompt_lengths, action_index = _index_actions(labels, order, layout)
    assert actions is None or actions.shape == action_index.shape
    image_index, image_slot = _index_images(labels, order, layout)
    weighted = (targets >= layout.weighted_first) & (targets <= layout.weighted_last)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        supervised=torch.from_numpy(np.flatnonzero(valid)),
        targets=torch.from_numpy(np.ascontiguousarray(targets)),
        action_rows=torch.from_numpy(rows),
        prompt_lengths=torch.from_numpy(prompt_lengths),
        action_index=torch.from_numpy(action_index),
        image_index=torch.from_numpy(image_index),
        image_slot=torch.from_numpy(image_slot),
        actions=None if actions is None else torch.from_numpy(actions),
        longest_prompt=int(prompt_lengths.max(initial=0)),
        weighted_targets=int(weighted.sum()),
        tokens=input_ids.size if tokens is None else tokens,
    )


def _inside(labels: Ids, start: int, end: int) -> NDArray[np.bool_]:
    """Positions strictly between a start and the end label that follows it."""
    opened = np.cumsum(labels == start, axis=1) > np.cumsum(labels == end, axis=1)
    return opened & (labels != start)


def _index_actions(labels: Ids, order: Ids, layout: TokenLayout) -> tuple[Ids, Ids, Ids]:
    """Rows [R] with an action chunk, their prompt lengths [R], and where in V their numbers are predicted [R, H, A].

    Args:
        order: [B, S], the index in V of each supervised position.
    """
    starts = labels == layout.action_start
    rows = np.flatnonzero(starts.any(axis=1))
    steps = starts[rows].sum(axis=1)
    horizon = int(steps[0]) if len(rows) else 0
    assert (steps == horizon).all(), "all action rows of a batch have the same number of steps"
    row_of, position = np.nonzero(_inside(labels, layout.action_start, layout.action_end))
    dimensions = len(row_of) // (len(rows) * horizon) if horizon else 0
    action_index = order[row_of, position - 1].reshape(len(rows), horizon, dimensions)
    prompt_lengths = starts[rows].argmax(axis=1) if len(rows) else np.empty(0, np.int64)
    return rows, prompt_lengths, action_index


def _index_images(labels: Ids, order: Ids, layout: TokenLayout) -> tuple[Ids, Ids]:
    """Where in V each token of an answer image is predicted [I], and the slot of its image [I]."""
    starts = labels == layout.image_start
    in_row = starts.sum(axis=1)
    assert in_row.max(initial=0) <= IMAGE_SLOTS, "metric names have ten slots for answer images"
    row_of, position = np.nonzero(_inside(labels, layout.image_start, layout.image_end))
    number = np.cumsum(starts, axis=1)[row_of, position] - 1
    return order[row_of, position - 1], IMAGE_SLOTS - in_row[row_of] + number
