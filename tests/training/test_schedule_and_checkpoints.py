import pytest
import torch
from torch import nn

from vlatrack.errors import CheckpointError
from vlatrack.metrics.states import MetricStates
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.checkpoint.files import (
    Identity,
    list_checkpoints,
    load_training,
    read_state,
    remove_old,
    save_checkpoint,
)
from vlatrack.training.optimisation import Schedule, adamw
from vlatrack.training.ranks import Ranks
from vlatrack.training.state import TrainState

IDENTITY = Identity.of(256, ValueRange((0.0,), (1.0,)), None)


def test_learning_rate_warms_up_linearly_and_falls_on_a_cosine() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.1, warmup_epochs=1, epochs=5, shape="cosine")
    assert [schedule.at(epoch) for epoch in (0, 0.5, 1, 3, 5)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_constant_schedule_stays_after_the_warm_up() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.0, warmup_epochs=0, epochs=5, shape="constant")
    assert [schedule.at(epoch) for epoch in (0, 2, 5)] == [1, 1, 1]


def _save(folder, *, step: int, seed: int = 0):
    torch.manual_seed(seed)
    policy = nn.Linear(3, 2)
    optimizer = adamw(policy, lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    policy(torch.ones(3)).sum().backward()
    optimizer.step()
    state = TrainState.fresh()
    state.step, state.best_step = step, 1
    state.window_sums = state.window_sums + MetricStates.of({"closs": (torch.ones(()), 1)})
    path = save_checkpoint(folder, policy=policy, optimizer=optimizer, state=state, identity=IDENTITY, ranks=Ranks())
    return path, optimizer


def test_a_checkpoint_gives_back_state_optimiser_and_random_numbers(tmp_path) -> None:
    path, optimizer = _save(tmp_path, step=7)
    expected = torch.rand(3)
    counters, identity = read_state(path)
    fresh = adamw(nn.Linear(3, 2), lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    state = load_training(path, fresh, counters, torch.device("cpu"), rank=0)
    assert torch.equal(torch.rand(3), expected)
    assert (state.step, state.best_step, state.window_sums["closs"].total.item()) == (7, 1, 1)
    assert identity == IDENTITY
    for mine, theirs in zip(fresh.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


def test_the_last_and_the_best_checkpoints_stay(tmp_path) -> None:
    for step in (1, 2, 3, 4, 5):
        _save(tmp_path, step=step)
    remove_old(tmp_path, keep_last=2, best_step=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000004", "step-00000005"]


def test_a_checkpoint_that_was_never_completed_does_not_count(tmp_path) -> None:
    path, _ = _save(tmp_path, step=1)
    (path / "files.json").unlink()
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"files\.json: no such file"):
        read_state(path)


def test_reaching_a_step_again_replaces_its_checkpoint(tmp_path) -> None:
    first, _ = _save(tmp_path, step=3)
    before = (first / "policy.safetensors").read_bytes()
    second, _ = _save(tmp_path, step=3, seed=1)
    assert first == second
    assert (second / "policy.safetensors").read_bytes() != before
    read_state(second)


def test_another_value_range_is_named() -> None:
    other = Identity.of(256, ValueRange((0.0,), (2.0,)), None)
    with pytest.raises(CheckpointError, match=r"action_high was \(2\.0,\) when .* is \(1\.0,\) now"):
        IDENTITY.check_equal(other, place="checkpoint")
