"""The average of the weights: what it averages, what it leaves alone, and what a checkpoint keeps of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.ema import WeightAverage
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState

TAKEN, NOT_TAKEN = torch.tensor(True), torch.tensor(False)


def policy_of(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    policy = nn.Linear(2, 2, dtype=dtype)
    for parameter in policy.parameters():
        nn.init.constant_(parameter, value)
    return policy


def test_early_steps_weigh_more_than_the_decay_says_so_that_the_initial_weights_are_soon_forgotten() -> None:
    policy = policy_of(0.0)
    average = WeightAverage(policy, decay=0.5)
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 4.0), start=1):
        nn.init.constant_(policy.weight, value)
        average.update(step, TAKEN)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * value
    assert average.tensors()["weight"] == pytest.approx(expected)


def test_a_step_that_was_not_taken_and_frozen_parameters_are_not_averaged() -> None:
    policy = policy_of(1.0)
    policy.bias.requires_grad_(False)
    average = WeightAverage(policy, decay=0.9)
    nn.init.constant_(policy.weight, 3.0)
    average.update(1, NOT_TAKEN)
    assert list(average.tensors()) == ["weight"]
    assert torch.equal(average.tensors()["weight"], torch.ones(2, 2))


def test_a_bf16_policy_has_an_average_in_fp32_which_acts_rounded_and_leaves_the_weights_as_they_were() -> None:
    policy = policy_of(1.0, torch.bfloat16)
    average = WeightAverage(policy, decay=0.9999)
    nn.init.constant_(policy.weight, 1.0078125)
    average.update(100000, TAKEN)
    assert torch.equal(average.tensors()["weight"], torch.full((2, 2), 1.0).lerp(torch.tensor(1.0078125), 1e-4))
    assert average.tensors()["weight"][0, 0] > 1.0  # which bf16 cannot express
    with average.applied():
        assert torch.equal(policy.weight, torch.ones(2, 2, dtype=torch.bfloat16))
    assert torch.equal(policy.weight, torch.full((2, 2), 1.0078125, dtype=torch.bfloat16))


def test_the_policy_of_a_checkpoint_is_the_average_and_a_restored_training_has_both(tmp_path: Path) -> None:
    def parts_of(policy: nn.Module, average: WeightAverage) -> TrainingParts:
        optimizer = adamw(policy.parameters(), lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
        return TrainingParts(policy, optimizer, ProcessGroup(), lambda folder: None, average.tensors())

    policy, fresh = policy_of(1.0, torch.bfloat16), policy_of(7.0, torch.bfloat16)
    average, restored = WeightAverage(policy, decay=0.999), WeightAverage(fresh, decay=0.999)
    parts = parts_of(policy, average)
    nn.init.constant_(policy.weight, 2.0)
    average.update(50, TAKEN)
    path, _ = CheckpointStore(tmp_path / "checkpoints").write(parts.capture(TrainState(step=50)), parts.group)
    assert torch.equal(load_file(path / "policy.safetensors")["weight"], average.tensors()["weight"])
    parts_of(fresh, restored).restore(path)
    assert torch.equal(fresh.weight, policy.weight)
    for name, tensor in average.tensors().items():
        assert torch.equal(restored.tensors()[name], tensor)
