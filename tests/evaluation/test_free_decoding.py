"""The error of freely decoded tokens beside that of tokens after the recorded ones."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_policy import BINS, DIMS, GEOMETRY, HORIZON, LAYOUT, vla_row, world_model_row

from vlatrack.evaluation.free_decoding import evaluate_free_decoding
from vlatrack.inference.decoding import decode_blocks, prefill
from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.bins import decode_ids


@pytest.fixture
def policy() -> VlaPolicy:
    """Its most probable tokens are bins, in both ways of decoding."""
    torch.manual_seed(0)
    backbone = ChameleonBackbone(backbone_config(GEOMETRY))
    with torch.no_grad():
        backbone.output_layer.zero_()
        first = LAYOUT.action_start + 2
        backbone.output_layer[first : first + BINS.count].normal_()
    head = ActionHead(backbone_width=32, time_horizon=HORIZON, action_dim=DIMS, reduced_width=16, heads=2)
    losses = documented_terms(LAYOUT, (HORIZON, DIMS))
    return VlaPolicy(backbone, head, layout=LAYOUT, bins=BINS, losses=losses).eval()


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def batches(size: int) -> list[Batch]:
    generator = np.random.default_rng(0)
    rows = [world_model_row(generator) if n == 2 else vla_row(generator, 3 + 2 * n) for n in range(7)]
    return [collate(rows[start : start + size], LAYOUT) for start in range(0, 7, size)]


def test_the_first_number_has_the_same_error_both_ways_and_the_second_another(
    policy: VlaPolicy, accelerator: Accelerator
) -> None:
    (batch,) = batches(7)
    free = evaluate_free_decoding(policy, [batch], accelerator)["l1_loss_free"].mean()
    with torch.no_grad():
        forced = policy(batch).states["l1_loss_action"].mean()
    assert torch.allclose(free[:, 0], forced[:, 0])
    assert (free[:, 1] - forced[:, 1]).abs().max() > 0.01


def test_it_is_the_error_of_what_the_policy_would_do_however_samples_are_batched(
    policy: VlaPolicy, accelerator: Accelerator
) -> None:
    one_by_one = evaluate_free_decoding(policy, batches(1), accelerator)["l1_loss_free"]
    together = evaluate_free_decoding(policy, [*batches(3), collate([], LAYOUT)], accelerator)["l1_loss_free"]
    assert (float(one_by_one.count), float(together.count)) == (6, 6)
    assert torch.allclose(one_by_one.total, together.total)
    row = vla_row(np.random.default_rng(0), 3)
    with torch.no_grad():
        ids = decode_blocks(policy, prefill(policy, [row.prompt], keep=True))
        chunk = decode_ids(ids, policy.centres, start=LAYOUT.action_start)
    recorded = policy.label_actions(collate([row], LAYOUT))
    alone = evaluate_free_decoding(policy, [collate([row], LAYOUT)], accelerator)["l1_loss_free"]
    assert torch.allclose(alone.total, (chunk - recorded).abs().double()[0])


def test_hidden_states_that_are_not_finite_make_it_nan(policy: VlaPolicy, accelerator: Accelerator) -> None:
    with torch.no_grad():
        policy.backbone.blocks[1].mlp.down_proj.weight.fill_(torch.nan)
    assert evaluate_free_decoding(policy, batches(7), accelerator)["l1_loss_free"].total.isnan().all()
