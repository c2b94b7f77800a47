"""Fine-tuning with a learning rate below what bf16 resolves: bf16 parameters against fp32, on a small policy."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from arithmetic import Arithmetic
from tiny_policy import BINS, DIMS, GEOMETRY, HORIZON, LAYOUT, vla_row

from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import store_parameters
from vlatrack.tokens.batch import Batch, collate
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS, BATCH, STEPS, LR = 64, 8, 200, 2e-5
COMMON: dict[str, Any] = {"lr": LR, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def batches_of(seed: int) -> list[Batch]:
    generator = np.random.default_rng(seed)
    rows = [vla_row(generator, 6) for _ in range(ROWS)]
    return [collate(rows[begin : begin + BATCH], LAYOUT) for begin in range(0, ROWS, BATCH)]


def take_steps(
    policy: VlaPolicy, optimizer: torch.optim.Optimizer, batches: list[Batch], *, steps: int, lr: float, bf16: bool
) -> None:
    policy.train()
    for step in range(steps):
        batch = batches[step % len(batches)]
        train_step(
            policy,
            optimizer,
            [batch],
            policy.loss_counts(batch),
            accelerator=Arithmetic(bf16=bf16),
            group=ProcessGroup(),
            lr=lr,
            clip_grad=1.0,
            trains_head=True,
            step=step,
        )


def loss_on(policy: VlaPolicy, batches: list[Batch]) -> float:
    policy.eval()
    with torch.no_grad():
        losses = [policy.loss(policy(batch), policy.loss_counts(batch)).item() for batch in batches]
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def pretrained() -> VlaPolicy:
    torch.manual_seed(0)
    head = ActionHead(backbone_width=32, time_horizon=HORIZON, action_dim=DIMS, reduced_width=16, heads=2, dropout=0)
    policy = VlaPolicy(
        ChameleonBackbone(backbone_config(GEOMETRY)),
        head,
        layout=LAYOUT,
        bins=BINS,
        losses=documented_terms(LAYOUT, (HORIZON, DIMS)),
    )
    take_steps(policy, adamw(policy.parameters(), **COMMON), batches_of(0), steps=150, lr=2e-3, bf16=False)
    return policy


def fine_tuned(pretrained: VlaPolicy, *, parameters: str, seed: int = 0, **storage: Any) -> float:
    """The loss on other rows than those of the pretraining, after 200 steps with them."""
    policy, batches = copy.deepcopy(pretrained), batches_of(1)
    if parameters == "bf16":
        store_parameters(policy, torch.bfloat16)
    if storage:
        optimizer: Any = CompactAdamW(policy.parameters(), seed=seed, **COMMON, **storage)
    else:
        optimizer = adamw(policy.parameters(), **COMMON)
    take_steps(policy, optimizer, batches, steps=STEPS, lr=LR, bf16=parameters == "bf16")
    store_parameters(policy, torch.float32)
    return loss_on(policy, batches)


@pytest.fixture(scope="module")
def in_fp32(pretrained: VlaPolicy) -> float:
    loss = fine_tuned(pretrained, parameters="fp32")
    assert loss < 0.95 * loss_on(pretrained, batches_of(1))
    return loss


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_stochastic_rounding_ends_within_half_a_percent_of_fp32(
    pretrained: VlaPolicy, in_fp32: float, seed: int
) -> None:
    loss = fine_tuned(pretrained, parameters="bf16", rounding="stochastic", states="bf16", seed=seed)
    assert loss == pytest.approx(in_fp32, rel=0.005)


@pytest.mark.parametrize(
    ("parameters", "rounding", "states"),
    [("bf16", "kahan", "bf16"), ("bf16", "stochastic", "8bit"), ("fp32", None, "8bit")],
)
def test_so_do_kahan_summation_and_states_in_8_bits(
    pretrained: VlaPolicy, in_fp32: float, parameters: str, rounding: str | None, states: str
) -> None:
    loss = fine_tuned(pretrained, parameters=parameters, rounding=rounding, states=states)
    assert loss == pytest.approx(in_fp32, rel=0.005)


def test_rounding_to_nearest_which_is_refused_learns_next_to_nothing(pretrained: VlaPolicy, in_fp32: float) -> None:
    assert fine_tuned(pretrained, parameters="bf16") > 1.05 * in_fp32
