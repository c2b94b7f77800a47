"""Decoder layers in fp8: what torchao converts, and where it can be used."""

import copy

import numpy as np
import pytest
import torch
from tiny_policy import LAYOUT, vla_row, world_model_row
from training_rank import make_policy

from vlatrack.errors import SpecError
from vlatrack.models.backbones.base import add_residual_dropout
from vlatrack.tokens.batch import collate
from vlatrack.training.float8 import check_float8, use_float8


def test_the_layers_compute_in_fp8_with_the_same_weights() -> None:
    policy = make_policy(set()).eval()
    converted = copy.deepcopy(policy)
    assert use_float8(converted.backbone.blocks, emulate=True) == 2 * 7  # q, k, v, o, gate, up, down
    assert converted.state_dict().keys() == policy.state_dict().keys()
    generator = np.random.default_rng(0)
    batch = collate([vla_row(generator, 5), world_model_row(generator)], LAYOUT)
    losses = []
    for each in (policy, converted):
        loss = each.loss(each(batch), each.loss_counts(batch))
        loss.backward()
        losses.append(loss.item())
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    gradients = [each.backbone.blocks[0].mlp.gate_proj.weight.grad for each in (policy, converted)]
    assert torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0) > 0.95


def test_residual_dropout_stays_with_the_layers() -> None:
    policy = make_policy(set()).train()
    add_residual_dropout(policy.backbone.blocks, 0.5)
    use_float8(policy.backbone.blocks, emulate=True)
    dropped = (policy.backbone.blocks[0].mlp(torch.randn(100, policy.backbone.width)) == 0).float().mean()
    assert 0.4 < dropped < 0.6


@pytest.mark.parametrize(
    ("device", "capability", "found"),
    [("cpu", (0, 0), "this is a CPU"), ("cuda", (8, 0), "this one has 8.0")],
)
def test_fp8_on_a_chip_without_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int], found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(SpecError, match=rf"^train.precision: fp8 needs a GPU .*, and {found}; use bf16$"):
        check_float8(torch.device(device))


def test_a_chip_with_fp8_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_float8(torch.device("cuda"))
