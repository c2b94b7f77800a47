"""What the prediction of a training's memory relies on, in torch's private APIs among others."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vlatrack.models.losses.token_losses import logits_at_once_as_on, token_losses
from vlatrack.training.memory_tracker import MemoryUse, PhaseTracker
from vlatrack.training.optimizers import adamw

WIDTH, ROWS = 1 << 16, 1 << 10  # the weights alone would be 16 GiB
WEIGHTS, ACTIVATIONS = 4 * WIDTH**2, 4 * ROWS * WIDTH


def fake_optimizer(layer: nn.Module) -> torch.optim.Optimizer:
    return adamw(layer.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def test_torchs_tracker_adds_up_the_storages_of_fake_tensors_by_what_they_hold() -> None:
    with FakeTensorMode():
        layer, rows = nn.Linear(WIDTH, WIDTH, bias=False), torch.zeros(ROWS, WIDTH)
        optimizer = fake_optimizer(layer)
        tracker = PhaseTracker()
        tracker.track_external(layer, optimizer)
        with tracker:
            loss = layer(rows).square().sum()
            tracker.phase = "backward"
            loss.backward()
            tracker.phase = "optimiser"
            optimizer.step()
    forward, optimiser = tracker.peaks["forward"], tracker.peaks["optimiser"]
    assert (forward.weights, forward.gradients, forward.optimizer_states) == (WEIGHTS, 0, 0)
    assert 2 * ACTIVATIONS <= forward.activations < 2 * ACTIVATIONS + 100  # the product and its square
    assert tracker.peaks["backward"].total > forward.total
    assert (optimiser.weights, optimiser.gradients) == (WEIGHTS, WEIGHTS)
    assert 2 * WEIGHTS <= optimiser.optimizer_states < 2 * WEIGHTS + 100  # two moments and a step count
    del layer, rows, optimizer, tracker, loss


def test_torchs_tracker_sees_that_a_tensor_is_gone() -> None:
    with FakeTensorMode():
        tracker = PhaseTracker()
        with tracker:
            kept = torch.zeros(ROWS, WIDTH)
            for _ in range(3):
                gone = kept + 1
                del gone
    assert tracker.peaks["forward"].total == 2 * ACTIVATIONS


def test_a_step_of_fused_adamw_runs_on_fake_tensors_and_makes_its_states() -> None:
    with FakeTensorMode():
        layer = nn.Linear(4, 4)
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = fake_optimizer(layer)
        optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
        optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
    assert len(states) == 6
    assert all(isinstance(value, FakeTensor) for value in states)


def test_fake_tensors_are_gone_when_an_exception_has_been_released() -> None:
    from vlatrack.training.memory import _release_frames

    made: list[weakref.ref] = []

    def fail() -> None:
        with FakeTensorMode():
            layer = nn.Linear(2, 2)
            made.append(weakref.ref(layer.weight))
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        fail()
    _release_frames(raised.value)
    gc.collect()
    assert made[0]() is None


def test_the_token_losses_are_the_same_however_many_logits_are_computed_at_a_time() -> None:
    torch.manual_seed(0)
    weight, targets = torch.randn(1 << 15, 8), torch.randint(0, 1 << 15, (100,))
    results = []
    for device in ("cpu", "cuda"):  # 32 rows at a time, and all of them
        hidden = torch.linspace(-1, 1, 800).reshape(100, 8).requires_grad_()
        with logits_at_once_as_on(device):
            losses = token_losses(hidden, weight, targets)
            (losses.nll.sum() + losses.logsumexp.square().sum()).backward()
        results.append((losses.nll, losses.logsumexp, losses.predicted, hidden.grad))
    for few, all_at_once in zip(*results, strict=True):
        # Gradients are sums of 32,768 numbers, which processors add in different orders.
        torch.testing.assert_close(few, all_at_once, rtol=1e-4, atol=1e-3)


def test_a_use_is_the_sum_of_its_parts() -> None:
    assert MemoryUse(1, 20, 300, 4000, 50000, 600000).total == 654321
