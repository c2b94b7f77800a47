"""A policy of a few thousand parameters and rows to feed it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_policy import BINS, DIMS, GEOMETRY, HORIZON, LAYOUT, vla_row, world_model_row

from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.prompts import TokenSequence


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
    words: tuple[int | None, ...] = (3, None, 9, 5, None, 12, 1)
    return [world_model_row(generator) if count is None else vla_row(generator, count) for count in words]
