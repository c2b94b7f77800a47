"""The attention mask of RynnVLA-002: causal, with action blocks of the answer blind to each other."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vlatrack.tokens.layout import TokenLayout


def attention_mask(input_ids: Tensor, layout: TokenLayout) -> Tensor:
    """Which position may attend to which.

    An action block after the last image of its row does not see earlier action blocks, so the steps of a chunk are
    conditionally independent given the prompt.

    Args:
        input_ids: int64 [B, S].

    Returns:
        bool [B, S, S], true where the query (second axis) may attend to the key (third axis).
    """
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    block, restricted = _action_blocks(input_ids, layout)
    other_block = (block[:, None, :] > 0) & (block[:, :, None] != block[:, None, :])
    causal = position[:, None] >= position
    return causal & ~(restricted[:, :, None] & other_block)


def block_mask(input_ids: Tensor, layout: TokenLayout) -> BlockMask:
    """The same mask for FlexAttention, which skips the squares of positions that it forbids as a whole."""
    block, restricted = _action_blocks(input_ids, layout)

    def allowed(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        other_block = (block[row, key] > 0) & (block[row, query] != block[row, key])
        return (query >= key) & ~(restricted[row, query] & other_block)

    rows, length = input_ids.shape
    return create_block_mask(allowed, rows, None, length, length, device=input_ids.device)


def _action_blocks(input_ids: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """For each position [B, S] the number of its action block, 0 outside of one, and whether it is blind to others."""
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    last_image = torch.where(input_ids == layout.image_end, position, -1).amax(dim=1, keepdim=True)
    starts, ends = input_ids == layout.action_start, input_ids == layout.action_end
    started = starts.cumsum(1)
    # The end token still belongs to its block, hence the ends *before* a position.
    block = torch.where(started > ends.cumsum(1) - ends.long(), started, 0)
    return block, (block > 0) & (position > last_image)
