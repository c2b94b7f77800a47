"""From prompts to action chunks: by the ActionHead in one forward pass, or as tokens, all steps of a chunk at once.

An action block sees the prompt and itself, not the other blocks (`vlatrack.models.attention`). So the H blocks of a
chunk need not wait for one another: they are decoded side by side, in A forward passes after the prompt's, with the
tokens that decoding one after another would have chosen.

Legend: B rows, S positions, P positions of the longest prompt, D width, H steps, A numbers of an action.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.base import Backbone
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import Ids


@dataclass(frozen=True)
class Prefill:
    """The prompts after their forward pass."""

    input_ids: Tensor  # int64 [B, P], right-padded
    lengths: Tensor  # int64 [B]
    hidden: Tensor  # [B, P, D]
    kept: Any | None  # keys and values, where the backbone keeps them


class StaticRoom:
    """Memory for keys and values that stays in its place from chunk to chunk; in use by one of them at a time."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._rows = self._positions = 0
        self._room: Any | None = None

    def empty(self, rows: int, positions: int) -> Any | None:
        """Room for so many positions of each row: that of the last time if it will do; None if there is no such."""
        if self._room is not None and rows == self._rows and positions <= self._positions:
            self._room.reset()
            return self._room
        self._rows, self._positions = rows, positions
        self._room = self._backbone.room_for(positions)
        return self._room


def prefill(
    policy: VlaPolicy,
    prompts: Sequence[Ids],
    *,
    keep: bool,
    length_multiple: int = 1,
    static: StaticRoom | None = None,
) -> Prefill:
    """One forward pass over prompts, which end before the first action block.

    Args:
        prompts: ids of each row.
        keep: whether tokens are to be decoded after them.
        length_multiple: rows are padded to a multiple of so many positions, so that lengths repeat.
        static: where keys and values are kept; None: in memory that grows.
    """
    device, layout = policy.centres.device, policy.layout
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = -(-int(lengths.max()) // length_multiple) * length_multiple
    rows = np.full((len(prompts), width), layout.pad, np.int64)
    for row, prompt in zip(rows, prompts, strict=True):
        row[: len(prompt)] = prompt
    input_ids, lengths = torch.from_numpy(rows).to(device), lengths.to(device)
    mask, backbone = attention_mask(input_ids, layout), policy.backbone
    if not (keep and backbone.keeps_keys):
        return Prefill(input_ids, lengths, backbone(input_ids, mask), None)
    positions = torch.arange(rows.shape[1], device=device).expand_as(input_ids)
    room = None
    if static is not None:  # each pass adds a position to each block
        room = static.empty(len(rows), width + policy.action_head.time_horizon * policy.action_head.action_dim)
    hidden, kept = backbone.forward_further(input_ids, mask, positions, room)
    return Prefill(input_ids, lengths, hidden, kept)


def head_actions(policy: VlaPolicy, prompts: Prefill) -> Tensor:
    """The chunks [B, H, A] of the ActionHead, trained towards [-1, 1] but not bounded."""
    actions: Tensor = policy.action_head(prompts.hidden, prompts.lengths)
    return actions.float()


def decode_blocks(policy: VlaPolicy, prompts: Prefill) -> Tensor:
    """The token ids int64 [B, H, A] of the chunks, the most probable of the bins' at each place.

    The start and end token of each block are given by the layout: nothing is decoded that could be no action.
    """
    if prompts.kept is None:
        return _decode_anew(policy, prompts)
    head, layout, device = policy.action_head, policy.layout, prompts.input_ids.device
    rows, prompt = prompts.input_ids.shape
    steps, numbers = head.time_horizon, head.action_dim
    first = prompts.lengths[:, None] + torch.arange(steps, device=device) * (numbers + 2)  # [B, H] starts of the blocks
    sees_prompt = (torch.arange(prompt, device=device) < prompts.lengths[:, None])[:, None].expand(-1, steps, -1)
    sees_itself = torch.eye(steps, dtype=torch.bool, device=device).expand(rows, -1, -1)
    mask, kept = sees_prompt, prompts.kept
    tokens, decoded = torch.full((rows, steps), layout.action_start, device=device), []
    for number in range(numbers):
        mask = torch.cat([mask, sees_itself], dim=2)
        hidden, kept = policy.backbone.forward_further(tokens, mask, first + number, kept)
        tokens = most_probable(policy, hidden)
        decoded.append(tokens)
    return torch.stack(decoded, dim=2)


def _decode_anew(policy: VlaPolicy, prompts: Prefill) -> Tensor:
    """The same for a backbone that keeps no keys and values: each pass computes the prompt again."""
    head, device = policy.action_head, prompts.input_ids.device
    rows, prompt = prompts.input_ids.shape
    steps, numbers = head.time_horizon, head.action_dim
    blocks = _empty_blocks(policy.layout, steps, numbers).to(device)  # [H, A + 2]
    ids = torch.full((rows, prompt + blocks.numel()), policy.layout.pad, device=device)
    ids[:, :prompt] = prompts.input_ids
    starts = prompts.lengths[:, None] + torch.arange(steps, device=device) * (numbers + 2)
    places = starts[:, :, None] + torch.arange(numbers + 2, device=device)  # [B, H, A + 2]
    ids.scatter_(1, places.flatten(1), blocks.flatten().expand(rows, -1))
    mask = attention_mask(ids, policy.layout)  # depends on the places of the blocks alone
    for number in range(numbers):
        hidden = policy.backbone(ids, mask)
        width = hidden.shape[2]
        of_blocks = hidden.gather(1, places[:, :, number, None].expand(-1, -1, width))
        ids.scatter_(1, places[:, :, number + 1], most_probable(policy, of_blocks))
    return ids.gather(1, places[:, :, 1:-1].flatten(1)).view(rows, steps, numbers)


def _empty_blocks(layout: TokenLayout, steps: int, numbers: int) -> Tensor:
    block = [layout.action_start, *[layout.pad] * numbers, layout.action_end]
    return torch.tensor([block] * steps)


def most_probable(policy: VlaPolicy, hidden: Tensor) -> Tensor:
    """The ids [...] of the bins with the largest logits after hidden states [..., D]."""
    first = policy.layout.action_start + 2
    bins = policy.backbone.output_layer[first : first + len(policy.centres) + 1]
    ids: Tensor = (hidden @ bins.to(hidden.dtype).T).argmax(-1) + first
    return ids
