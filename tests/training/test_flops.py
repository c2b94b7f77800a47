"""The arithmetic that MFU counts is what torch counts."""

import numpy as np
import pytest
import torch
from tiny_policy import LAYOUT, vla_row, world_model_row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_rank import make_policy

from vlatrack.models.losses.token_losses import token_losses
from vlatrack.tokens.batch import collate
from vlatrack.training.chips import chip_of, known_chip
from vlatrack.training.flops import PolicySizes, batch_flops


def test_the_formula_counts_what_torch_counts_in_the_layers_and_the_head() -> None:
    generator = np.random.default_rng(0)
    policy, batch = make_policy(set()).train(), collate([vla_row(generator, 6) for _ in range(3)], LAYOUT)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # no other is counted on a CPU
        output = policy(batch)
        policy.loss(output, policy.loss_counts(batch)).backward()
    hidden = torch.zeros(len(batch.targets), policy.backbone.width, requires_grad=True)
    with FlopCounterMode(display=False) as of_logits:  # whose chunks are added up in ways that the counter misses
        token_losses(hidden, policy.backbone.output_layer, batch.targets).nll.sum().backward()
    sizes = PolicySizes.of(policy)
    logits = sizes.output_layer.flops * len(batch.targets)
    counted = counter.get_total_flops() - of_logits.get_total_flops()
    assert counted == pytest.approx(batch_flops(sizes, batch) - logits, rel=1e-9)
    assert logits == 6 * policy.backbone.output_layer.numel() * len(batch.targets)


def test_frozen_layers_need_no_gradient_of_their_own() -> None:
    policy, batch = make_policy(set()), collate([vla_row(np.random.default_rng(0), 6)], LAYOUT)
    whole = batch_flops(PolicySizes.of(policy), batch)
    policy.backbone.blocks.requires_grad_(False)
    frozen = batch_flops(PolicySizes.of(policy), batch)
    assert whole - frozen == 2 * PolicySizes.of(policy).blocks.numbers * batch.tokens


def test_padding_and_idle_batches_are_no_arithmetic() -> None:
    sizes, row = PolicySizes.of(make_policy(set())), world_model_row(np.random.default_rng(0))
    assert batch_flops(sizes, collate([row], LAYOUT)) == batch_flops(sizes, collate([row], LAYOUT, length_multiple=64))
    assert batch_flops(sizes, collate([], LAYOUT)) == 0


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
    ],
)
def test_a_chip_is_known_by_the_name_that_its_driver_gives_it(name: str, tflops: float) -> None:
    chip = known_chip(name)
    assert chip is not None
    assert chip.flops == tflops * 1e12


def test_a_cpu_and_an_unknown_gpu_have_no_peak() -> None:
    assert known_chip("NVIDIA Tesla of 2031") is None
    assert chip_of(torch.device("cpu")) is None
