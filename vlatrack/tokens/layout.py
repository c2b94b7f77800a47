"""The token layout: the ids of text, images, actions and states in a backbone's vocabulary."""

from dataclasses import dataclass
from typing import Self

IGNORED_LABEL = -100
CHAMELEON_PREFIX = "model.vqmodel."
"""Prefix of the image tokenizer's weights in a Chameleon checkpoint."""
PIXELS_PER_CODE = 16

_GRID_SIZES = 33  # an image has up to 1024 pixels a side, that is 32 grid units
_ACTION_SPAN, _STATE_SPAN = 5000, 500  # from a start token to its end token, as the reference has them


@dataclass(frozen=True)
class TokenLayout:
    """The special ids of a sequence. The defaults are Chameleon's, as RynnVLA-002 and WorldVLA use them.

    Reserved Chameleon tokens ``<reservedN>`` have the id N + 4. A side of n x 32 pixels of an image has the token
    ``grid_base + n``. Without a pretrained text tokenizer, byte b of a text has the id ``byte_base + b``; in Chameleon,
    too, the ids from 16384 on are text.
    """

    pad: int = 0
    bos: int = 1
    first_image_code: int = 4
    image_codes: int = 8192
    image_end: int = 8196
    image_start: int = 8197
    end_of_turn: int = 8710
    end_of_image_row: int = 8803
    grid_base: int = 8804
    action_start: int = 10004
    action_end: int = 15004
    state_start: int = 15504
    state_end: int = 16004
    byte_base: int = 16384
    # The reference weights ids 3..8194 in the cross-entropy, one less than the range of the image codes.
    weighted_first: int = 3
    weighted_last: int = 8194

    @classmethod
    def after(cls, first: int, *, pad: int, bos: int) -> Self:
        """A layout appended to another model's vocabulary, without gaps from ``first`` on.

        Args:
            first: the size of the model's own vocabulary.
            pad, bos: the model's ids of padding and of the beginning of a sequence.
        """
        after_codes = first + cls.image_codes
        grid_base = after_codes + 4
        action_start = grid_base + _GRID_SIZES
        state_start = action_start + _ACTION_SPAN + 1
        return cls(
            pad=pad,
            bos=bos,
            first_image_code=first,
            image_end=after_codes,
            image_start=after_codes + 1,
            end_of_turn=after_codes + 2,
            end_of_image_row=after_codes + 3,
            grid_base=grid_base,
            action_start=action_start,
            action_end=action_start + _ACTION_SPAN,
            state_start=state_start,
            state_end=state_start + _STATE_SPAN,
            byte_base=state_start + _STATE_SPAN + 1,
            weighted_first=first,
            weighted_last=after_codes - 1,
        )

    @property
    def vocabulary_size(self) -> int:
        """Size of the smallest vocabulary with every special id and the 256 byte ids."""
        return self.byte_base + 256
