import pytest
import torch
from accelerate import Accelerator

from vlatrack.metrics.schema import MetricSchema
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout
from vlatrack.training.gradient_share import gradient_shares
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup

LAYOUT = TokenLayout()


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_shares_are_the_gradient_norms_of_the_terms_alone(make_policy, rows, accelerator) -> None:
    policy, batch = make_policy(z_loss_weight=1e-3), collate(rows, LAYOUT)
    counts = policy.loss_counts(batch)
    norms = {}
    for name, weight in (("closs", 1.0), ("loss_ct", 10.0), ("z_loss", 1e-3)):
        policy.zero_grad()
        (weight * policy(batch).totals[name] / counts[name]).backward()
        norms[name] = sum(p.grad.square().sum().item() for p in policy.parameters() if p.grad is not None) ** 0.5
    expected = {f"gradient_share_{name}": norm / sum(norms.values()) for name, norm in norms.items()}
    assert gradient_shares(policy, batch, counts, accelerator) == pytest.approx(expected, rel=1e-4)
    schema = MetricSchema.for_experiment(horizon=3, action_dim=2)
    assert all(f"train_{name}" in schema for name in expected)


def test_a_term_without_weight_has_no_share_and_one_without_rows_a_share_of_zero(
    make_policy, rows, accelerator
) -> None:
    policy = make_policy(z_loss_weight=0.0)
    counts = policy.loss_counts(collate(rows, LAYOUT))
    shares = gradient_shares(policy, collate([rows[1]], LAYOUT), counts, accelerator)
    assert shares == {"gradient_share_closs": 1.0, "gradient_share_loss_ct": 0.0}


def test_the_training_goes_on_bitwise_as_without_the_measurement(make_policy, rows, accelerator) -> None:
    weights = []
    for measures in (False, True):
        policy, batch = make_policy(residual_dropout=0.2).train(), collate(rows, LAYOUT)
        optimizer = adamw(policy.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        for _ in range(2):
            if measures:
                gradient_shares(policy, batch, policy.loss_counts(batch), accelerator)
            counts, group = policy.loss_counts(batch), ProcessGroup()
            train_step(
                policy,
                optimizer,
                [batch],
                counts,
                accelerator=accelerator,
                group=group,
                lr=1e-3,
                clip_grad=None,
                trains_head=True,
            )
        weights.append(policy.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_gradients_that_are_being_accumulated_stay(make_policy, rows, accelerator) -> None:
    policy, batch = make_policy(), collate(rows, LAYOUT)
    policy(batch).totals["closs"].backward()
    before = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    gradient_shares(policy, batch, policy.loss_counts(batch), accelerator)
    after = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_batch_that_trains_nothing_of_a_frozen_policy_changes_nothing(make_policy, rows, accelerator) -> None:
    policy = make_policy()
    policy.backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = adamw(policy.parameters(), lr=0.1, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    world, both = collate([rows[1]], LAYOUT), collate(rows[:2], LAYOUT)
    counts = policy.loss_counts(world)
    settings = {"accelerator": accelerator, "group": ProcessGroup(), "lr": 0.1, "clip_grad": None}
    train_step(policy, optimizer, [world], counts, trains_head=False, **settings)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    shares = gradient_shares(policy, both, policy.loss_counts(both), accelerator)
    assert shares == {"gradient_share_closs": 0.0, "gradient_share_loss_ct": 1.0, "gradient_share_z_loss": 0.0}


def test_a_step_that_is_not_taken_leaves_running_means_as_they_were(make_policy, rows, accelerator) -> None:
    policy = make_policy().train()
    policy.backbone.register_buffer("mean", torch.zeros(()))

    def keep_mean(module, _, hidden) -> None:
        module.mean.copy_(hidden.detach().mean())

    policy.backbone.register_forward_hook(keep_mean)
    optimizer = adamw(policy.parameters(), lr=0.1, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    batch = collate(rows, LAYOUT)
    settings = {"accelerator": accelerator, "group": ProcessGroup(), "lr": 0.0, "clip_grad": None, "trains_head": True}
    train_step(policy, optimizer, [batch], policy.loss_counts(batch), **settings)
    mean = policy.backbone.mean.item()
    assert mean != 0
    with torch.no_grad():
        policy.backbone.output_layer[0] = torch.nan
    assert not train_step(policy, optimizer, [batch], policy.loss_counts(batch), **settings).finite
    assert policy.backbone.mean.item() == mean
