"""Which id means what: the vocabulary that RynnVLA-002 and WorldVLA share with Chameleon."""

from dataclasses import dataclass

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenLayout:
    """The special ids of a sequence. The defaults are the reference's; every id is data, not code.

    Reserved Chameleon tokens ``<reservedN>`` have the id N + 4. An image patch grid of n x 32 pixels
    is announced by ``grid_base + n``. Byte b of a text has the id ``byte_base + b`` where no text
    tokenizer comes with a checkpoint: the ids from 16384 on hold text in Chameleon too.
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
    # The reference weights ids 3..8194 in the cross-entropy, one less than the image codes' own range.
    weighted_first: int = 3
    weighted_last: int = 8194

    @property
    def scratch_vocabulary(self) -> int:
        """Smallest vocabulary that holds every special id and the 256 byte ids."""
        return self.byte_base + 256


PIXELS_PER_CODE = 16
PIXELS_PER_GRID_UNIT = 32
