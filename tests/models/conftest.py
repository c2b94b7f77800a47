"""A policy of a few thousand parameters and rows to feed it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence, vla_sequence, world_model_sequence

LAYOUT = TokenLayout()
HORIZON, DIMS = 3, 2
GEOMETRY = {
    "vocab_size": LAYOUT.vocabulary_size,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
BINS = Bins(64)


@pytest.fixture
def make_policy() -> Callable[..., VlaPolicy]:
    def make(*, residual_dropout: float = 0.0, horizon: int = HORIZON, own=(), **weights) -> VlaPolicy:
        torch.manual_seed(0)
        backbone = ChameleonBackbone(backbone_config(GEOMETRY), residual_dropout=residual_dropout)
        head = ActionHead(backbone_width=32, time_horizon=horizon, action_dim=DIMS, reduced_width=16, heads=2)
        losses = (*documented_terms(LAYOUT, (horizon, DIMS), **weights), *own)
        return VlaPolicy(backbone, head, layout=LAYOUT, bins=BINS, losses=losses).eval()

    return make


@pytest.fixture
def rows() -> list[TokenSequence]:
    """VLA rows of different prompt lengths, with world-model rows between them."""
    generator = np.random.default_rng(0)

    def image() -> np.ndarray:
        return generator.integers(4, 500, (2, 2))

    def vla(words: int) -> TokenSequence:
        actions = generator.uniform(-1, 1, (HORIZON, DIMS)).astype(np.float32)
        return vla_sequence(
            text=generator.integers(16384, 16600, words).tolist(),
            state=None,
            images=[image()],
            action_ids=BINS.encode(actions, start=LAYOUT.action_start),
            actions=actions,
            layout=LAYOUT,
            max_length=256,
        )

    def world() -> TokenSequence:
        action = BINS.encode(generator.uniform(-1, 1, DIMS), start=LAYOUT.action_start)
        return world_model_sequence(
            text=[16400], history=[([image()], action)], next_images=[image()], layout=LAYOUT, max_length=256
        )

    return [vla(3), world(), vla(9), vla(5), world(), vla(12), vla(1)]
