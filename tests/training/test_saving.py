"""Checkpoints that are written while the training goes on, and the states that they hold."""

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vlatrack.errors import CheckpointError
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.saving import RunCheckpoints
from vlatrack.training.checkpoint.shards import HostCopies, Shard, StoredTensors
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState


class Counting(torch.optim.Optimizer):
    """Keeps a tensor and a number for each parameter; its learning rate is a tensor."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"lr": torch.tensor(0.5)})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state |= {"steps": 0, "total": torch.zeros_like(parameter)}
                state["steps"] += 1
                state["total"] += parameter.grad
                parameter -= group["lr"] * parameter.grad


def _parts(seed: int = 0, averages: Mapping[str, Tensor] | None = None) -> TrainingParts:
    torch.manual_seed(seed)
    policy = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    policy[1].requires_grad_(False)
    return TrainingParts(policy, Counting(policy.parameters()), ProcessGroup(), lambda folder: None, averages or {})


def _step(parts: TrainingParts) -> None:
    parts.policy(torch.ones(3)).sum().backward()
    parts.optimizer.step()
    parts.optimizer.zero_grad()


class Told(Callback):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_checkpoint(self, state: TrainState, path: Path, policy_sha256: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.names.append(path.name)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def _gate(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The first: lets the writing begin; the second: it has ended."""
    opened, ended, write = threading.Event(), threading.Event(), store.write

    def write_later(*arguments) -> object:
        opened.wait(30)
        try:
            return write(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr(store, "write", write_later)
    return opened, ended


def test_steps_that_follow_do_not_reach_a_checkpoint_that_is_being_written(store, monkeypatch) -> None:
    parts, told = _parts(), Told()
    _step(parts)
    checkpoints = RunCheckpoints(store, parts, keep_last=2, callbacks=[told])
    opened, ended = _gate(store, monkeypatch)
    state = TrainState(step=1)
    expected = parts.policy[0].weight.detach().clone(), parts.optimizer.state[parts.policy[0].weight]["total"].clone()
    checkpoints.save(state)
    _step(parts)
    state.step = 2
    checkpoints.poll()  # does not wait for it
    assert (told.names, store.all()) == ([], [])
    opened.set()
    assert ended.wait(30)
    checkpoints.wait()
    assert told.names == ["step-00000001"]
    again = _parts(seed=1)
    assert again.restore(store.find("last")).step == 1
    weight = again.policy[0].weight
    assert torch.equal(weight, expected[0])
    assert torch.equal(again.optimizer.state[weight]["total"], expected[1])
    assert again.optimizer.state[weight]["steps"] == 1
    assert [group["lr"].item() for group in again.optimizer.param_groups] == [0.5]
    assert again.policy[1].weight not in again.optimizer.state  # frozen: it has none


def test_the_next_one_waits_for_the_last_and_older_ones_go(store) -> None:
    parts, told = _parts(), Told()
    checkpoints = RunCheckpoints(store, parts, keep_last=1, callbacks=[told])
    for step in (1, 2, 3):
        checkpoints.save(TrainState(step=step))
    checkpoints.wait()
    assert told.names == [f"step-0000000{step}" for step in (1, 2, 3)]
    assert [path.name for path in store.folder.glob("step-*")] == ["step-00000003"]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_goes_wrong_beside_the_training_is_told_in_it(store, monkeypatch, asynchronous: bool) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("the disk is full")

    monkeypatch.setattr(store, "write", full)
    checkpoints = RunCheckpoints(store, _parts(), keep_last=1, callbacks=[], asynchronous=asynchronous)

    def save_twice() -> None:
        for step in (1, 2):
            checkpoints.save(TrainState(step=step))

    with pytest.raises(CheckpointError, match="the disk is full"):
        save_twice()
    checkpoints.wait()  # it has been told


def test_averages_are_the_policy_and_the_weights_go_on_beside_them(store) -> None:
    parts, again = (_parts(seed, {"0.weight": torch.full((2, 3), float(seed))}) for seed in (1, 0))
    path, _ = store.write(parts.capture(TrainState(step=1)), parts.group)
    assert StoredTensors(path).read("0.weight").sum() == 6
    again.restore(path)
    assert again.averages["0.weight"].sum() == 6
    for name in ("weight", "bias"):
        assert torch.equal(getattr(again.policy[0], name), getattr(parts.policy[0], name))
    without, _ = store.write(_parts().capture(TrainState(step=2)), parts.group)
    with pytest.raises(CheckpointError, match=r"lacks weights\.0\.weight; it was made without averages"):
        again.restore(without)


def test_states_of_another_optimiser_are_one_line(store) -> None:
    parts, other = _parts(), _parts()
    _step(parts)
    path, _ = store.write(parts.capture(TrainState(step=1)), parts.group)
    other = TrainingParts(other.policy, torch.optim.Adam(other.policy.parameters()), other.group, lambda folder: None)
    with pytest.raises(CheckpointError, match=r"its optimiser states are not those of this optimiser \(optim\.0\.bias"):
        other.restore(path)


def test_tensors_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "bf16": torch.arange(6).reshape(2, 3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "codes": torch.arange(5, dtype=torch.uint8),
        "a view": torch.arange(12.0).reshape(3, 4).T,
        "fp8": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
    }
    shard = Shard(tensors, HostCopies())
    (name,) = shard.write(tmp_path, "policy", [shard.plan], 0)
    assert name == "policy.safetensors"
    stored = StoredTensors(tmp_path)
    for name, tensor in tensors.items():
        read = stored.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read.float(), tensor.float())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_quantised_states_are_stored_as_codes_and_scales_and_go_on_bit_by_bit(store) -> None:
    optim = pytest.importorskip("torchao.optim")

    def parts(seed: int) -> TrainingParts:
        torch.manual_seed(seed)
        policy = nn.Linear(128, 64)
        optimizer = optim.AdamW8bit(policy.parameters(), lr=1e-2)
        return TrainingParts(policy, optimizer, ProcessGroup(), lambda folder: None)

    def step(training: TrainingParts, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        training.policy(torch.randn(4, 128, generator=generator)).square().sum().backward()
        training.optimizer.step()
        training.optimizer.zero_grad()

    one, other = parts(0), parts(1)
    step(one, 0)
    path, _ = store.write(one.capture(TrainState(step=1)), one.group)
    names = StoredTensors(path / "training").shapes
    assert {"optim.weight.exp_avg.codes", "optim.weight.exp_avg.scale"} <= names.keys()
    other.restore(path)
    for training in (one, other):
        step(training, 1)
    assert torch.equal(one.policy.weight, other.policy.weight)
