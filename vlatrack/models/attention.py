"""The attention mask of RynnVLA-002: causal, with action blocks of the answer blind to each other."""

import torch
from torch import Tensor

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
    length = input_ids.shape[1]
    position = torch.arange(length, device=input_ids.device)
    last_image = torch.where(input_ids == layout.image_end, position, -1).amax(dim=1, keepdim=True)
    starts, ends = input_ids == layout.action_start, input_ids == layout.action_end
    started = starts.cumsum(1)
    # The end token still belongs to its block, hence the ends *before* a position.
    block = torch.where(started > ends.cumsum(1) - ends.long(), started, 0)
    restricted = (block > 0) & (position > last_image)
    other_block = (block[:, None, :] > 0) & (block[:, :, None] != block[:, None, :])
    causal = position[:, None] >= position
    return causal & ~(restricted[:, :, None] & other_block)
