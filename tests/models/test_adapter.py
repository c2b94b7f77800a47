"""Adapters beside the frozen layers of a backbone, and what becomes of their weights."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vlatrack.errors import SpecError
from vlatrack.models.backbones.activations import keep_activations
from vlatrack.models.backbones.adapter import Adapter, add_adapter, merge_adapter
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch, collate

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = ["lora", pytest.param("dora", marks=pytest.mark.slow)]


def adapter(kind: str = "lora", **changes) -> Adapter:
    settings = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ALL, "base": "fp32"}
    return Adapter(kind=kind, **(settings | changes))


@pytest.fixture
def batch(make_policy, rows) -> Batch:
    return collate(rows, make_policy().layout)


def loss_of(policy: VlaPolicy, batch: Batch) -> torch.Tensor:
    return policy.loss(policy(batch), policy.loss_counts(batch))


def train_a_little(policy: VlaPolicy, batch: Batch) -> None:
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        loss_of(policy, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_computes_what_it_did_until_its_adapters_are_trained(make_policy, batch, kind: str) -> None:
    policy = make_policy()
    before = loss_of(policy, batch)
    add_adapter(policy.backbone, adapter(kind))
    torch.testing.assert_close(loss_of(policy, batch), before)


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_and_the_head_are_trained(make_policy, batch, kind: str) -> None:
    policy = make_policy()
    plain = {name: value.clone() for name, value in policy.state_dict().items()}
    add_adapter(policy.backbone, adapter(kind))
    train_a_little(policy.train(), batch)
    after = {name.replace(".base_layer.", "."): value for name, value in policy.state_dict().items()}
    changed = {name for name, value in plain.items() if not torch.equal(after[name], value)}
    assert changed == {name for name in plain if name.startswith("action_head.")}
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    new = {name for name in trained if not name.startswith("action_head.")}
    per_layer = 2 if kind == "lora" else 3
    assert len(new) == per_layer * len(ALL) * len(policy.backbone.blocks)
    assert all("lora_" in name for name in new)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_the_adapters_did_under_the_old_names(make_policy, batch, kind: str) -> None:
    policy = make_policy()
    names = policy.state_dict().keys()
    add_adapter(policy.backbone, adapter(kind))
    train_a_little(policy, batch)
    with torch.no_grad():
        adapted = policy.backbone(batch.input_ids, _causal(batch))
        merge_adapter(policy.backbone)
        merged = policy.backbone(batch.input_ids, _causal(batch))
    assert policy.state_dict().keys() == names
    torch.testing.assert_close(merged, adapted, rtol=1e-5, atol=1e-5)
    assert not any("lora" in type(module).__module__ for module in policy.modules())


def _causal(batch: Batch) -> torch.Tensor:
    rows, positions = batch.input_ids.shape
    return torch.ones(positions, positions, dtype=torch.bool).tril().expand(rows, -1, -1)


def test_residual_dropout_also_drops_the_share_of_an_adapter(make_policy) -> None:
    """With the adapter as all that a branch computes, a dropped number is exactly zero."""
    policy = make_policy(residual_dropout=0.5)
    add_adapter(policy.backbone, adapter())
    mlp = policy.backbone.blocks[0].mlp.train()
    down = mlp.down_proj
    nn.init.zeros_(down.get_base_layer().weight)
    nn.init.normal_(down.lora_B["default"].weight)
    dropped = (mlp(torch.randn(4, 64, 32)) == 0).float().mean()
    assert 0.4 < dropped < 0.6


def test_a_base_in_bf16_has_adapters_and_a_head_in_fp32(make_policy, batch) -> None:
    policy = make_policy()
    before = loss_of(policy, batch)
    positions = [value.dtype for value in policy.buffers()]
    add_adapter(policy.backbone, adapter(base="bf16"))
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in policy.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert [value.dtype for value in policy.buffers()] == positions
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_of(policy, batch), before, rtol=2e-2, atol=0)
    merge_adapter(policy.backbone)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_activations_that_are_computed_again_change_no_bit_with_the_dropout_of_adapters(
    make_policy: Callable[..., VlaPolicy], batch: Batch, kind: str
) -> None:
    gradients = []
    for keep in ("all", "every_second", "none"):
        policy = make_policy(residual_dropout=0.2)
        torch.manual_seed(1)
        add_adapter(policy.backbone, adapter(kind, dropout=0.3))
        keep_activations(policy.backbone.blocks, keep)
        torch.manual_seed(2)
        loss_of(policy.train(), batch).backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    for other in gradients[1:]:
        assert all(map(torch.equal, gradients[0], other))


@pytest.mark.parametrize("target", ["qproj", "proj", "lm_head", "action_head"])
def test_a_target_that_matches_nothing_is_one_line_with_what_there_is(make_policy, target: str) -> None:
    message = rf"^backbone.adapter.targets: {target} is no .*; there are q_proj, .* down_proj$"
    with pytest.raises(SpecError, match=message):
        add_adapter(make_policy().backbone, adapter(targets=("q_proj", target)))
