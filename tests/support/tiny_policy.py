"""The geometry of a policy of a few thousand parameters, and rows to feed it."""

import numpy as np

from vlatrack.tokens.bins import Bins
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import Ids, TokenSequence, vla_sequence, world_model_sequence

LAYOUT, BINS = TokenLayout(), Bins(64)
HORIZON, DIMS = 3, 2
GEOMETRY = {
    "vocab_size": LAYOUT.vocabulary_size,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}


def vla_row(generator: np.random.Generator, words: int) -> TokenSequence:
    """A prompt of so many words and an image, and an action chunk."""
    actions = generator.uniform(-1, 1, (HORIZON, DIMS)).astype(np.float32)
    return vla_sequence(
        text=generator.integers(16384, 16600, words).tolist(),
        state=None,
        images=[_image(generator)],
        action_ids=BINS.encode(actions, start=LAYOUT.action_start),
        actions=actions,
        layout=LAYOUT,
        max_length=256,
    )


def world_model_row(generator: np.random.Generator) -> TokenSequence:
    """An image and an action, and the next image."""
    action = BINS.encode(generator.uniform(-1, 1, DIMS), start=LAYOUT.action_start)
    history = [([_image(generator)], action)]
    return world_model_sequence(
        text=[16400], history=history, next_images=[_image(generator)], layout=LAYOUT, max_length=256
    )


def _image(generator: np.random.Generator) -> Ids:
    return generator.integers(4, 500, (2, 2))
