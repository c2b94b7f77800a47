"""Prompts and answers of samples, as token ids and labels.

The order within a prompt is the reference's (RynnVLA-002): text, state, then images (history oldest
first, within a time step third-person before wrist).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import TokenError
from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout

Ids = NDArray[np.int64]

VLA_PROMPT = "What action should the robot take to {instruction}?"
WORLD_MODEL_PROMPT = (
    "Generate the next image based on the provided sequence of historical images and corresponding actions."
)


@dataclass(frozen=True)
class TokenSequence:
    """One training row before batching."""

    input_ids: Ids  # [S]
    labels: Ids  # [S], -100 on the prompt, the id itself on the answer
    actions: NDArray[np.float32] | None = None  # [H, A] the answer's actions in [-1, 1], before binning

    @property
    def prompt(self) -> Ids:
        """What the answer follows."""
        return self.input_ids[self.labels == IGNORED_LABEL]


def image_block(codes: Ids, layout: TokenLayout) -> Ids:
    """An image's code ids [rows, columns] between start token, grid size, end-of-row tokens and end token."""
    rows, columns = codes.shape
    assert rows % 2 == columns % 2 == 0, "the layout gives an image's size in units of 2 x 2 codes"
    body = np.concatenate([codes, np.full((rows, 1), layout.end_of_image_row)], axis=1).ravel()
    head = [layout.image_start, layout.grid_base + rows // 2, layout.grid_base + columns // 2]
    return np.concatenate([head, body, [layout.image_end]]).astype(np.int64)


def action_block(ids: Ids, layout: TokenLayout) -> Ids:
    """The A ids of one action between its start and end token."""
    return np.concatenate([[layout.action_start], ids, [layout.action_end]]).astype(np.int64)


def state_block(ids: Ids, layout: TokenLayout) -> Ids:
    """The N ids of a proprioceptive state between its start and end token."""
    return np.concatenate([[layout.state_start], ids, [layout.state_end]]).astype(np.int64)


def vla_prompt(*, text: Sequence[int], state: Ids | None, images: Sequence[Ids], layout: TokenLayout) -> Ids:
    """What a policy reads before it answers with an action chunk: instruction, state and images, end of turn.

    Args:
        text: ids of the filled-in ``VLA_PROMPT``.
        state: ids [N], or None for a policy without a state.
        images: code ids [rows, columns] of each image, in prompt order.
    """
    parts = [np.asarray([layout.bos, *text], np.int64)]
    if state is not None:
        parts.append(state_block(state, layout))
    parts.extend(image_block(image, layout) for image in images)
    return np.concatenate([*parts, [layout.end_of_turn]])


def vla_sequence(
    *,
    text: Sequence[int],
    state: Ids | None,
    images: Sequence[Ids],
    action_ids: Ids,
    actions: NDArray[np.float32] | None,
    layout: TokenLayout,
    max_length: int,
) -> TokenSequence:
    """An instruction, state and images as the prompt; the action chunk as the answer.

    Args:
        text, state, images: see ``vla_prompt``.
        action_ids: ids [H, A] of the chunk.
        actions: the same chunk in [-1, 1] before binning, [H, A].
        max_length: longest sequence that the backbone accepts.

    Raises:
        TokenError: the sequence is longer than ``max_length``.
    """
    question = vla_prompt(text=text, state=state, images=images, layout=layout)
    answer = [action_block(step, layout) for step in action_ids]
    return _join(question, 1 + len(text), answer, actions=actions, layout=layout, max_length=max_length)


def world_model_sequence(
    *,
    text: Sequence[int],
    history: Sequence[tuple[Sequence[Ids], Ids]],
    next_images: Sequence[Ids],
    layout: TokenLayout,
    max_length: int,
) -> TokenSequence:
    """Images and the actions taken as the prompt; the images that follow as the answer.

    Args:
        text: ids of ``WORLD_MODEL_PROMPT``.
        history: for each time step, its images (code ids) and the ids [A] of the action taken.
        next_images: code ids of the images to predict.

    Raises:
        TokenError: the sequence is longer than ``max_length``.
    """
    prompt = [np.asarray([layout.bos, *text], np.int64)]
    for images, action in history:
        prompt.extend(image_block(image, layout) for image in images)
        prompt.append(action_block(action, layout))
    question = np.concatenate([*prompt, [layout.end_of_turn]])
    answer = [image_block(image, layout) for image in next_images]
    return _join(question, len(prompt[0]), answer, actions=None, layout=layout, max_length=max_length)


def _join(
    question: Ids,
    of_text: int,
    answer: list[Ids],
    *,
    actions: NDArray[np.float32] | None,
    layout: TokenLayout,
    max_length: int,
) -> TokenSequence:
    reply = np.concatenate([*answer, [layout.end_of_turn]])
    check_length(len(question) + len(reply), of_text=of_text, max_length=max_length)
    labels = np.concatenate([np.full(len(question), IGNORED_LABEL, np.int64), reply])
    return TokenSequence(np.concatenate([question, reply]), labels, actions)


def check_length(length: int, *, of_text: int, max_length: int) -> None:
    """Raise TokenError if a sample of so many tokens, some of them text, is longer than ``max_length``."""
    if length > max_length:
        raise TokenError(
            f"a sample has {length} tokens ({of_text} of them text) but backbone.max_seq_len is {max_length}; "
            "shorten the instruction, use fewer or smaller images, or raise max_seq_len"
        )
