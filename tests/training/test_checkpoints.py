"""Checkpoints on the disk: whole or not there, found by name, told apart when damaged."""

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlatrack.errors import CheckpointError
from vlatrack.metrics.states import MetricStates
from vlatrack.training.checkpoint import store as store_module
from vlatrack.training.checkpoint.contents import TrainingParts, load_weights
from vlatrack.training.checkpoint.manifest import read_manifest
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState


def _parts(seed: int = 0) -> TrainingParts:
    torch.manual_seed(seed)
    policy = nn.Linear(3, 2)
    optimizer = adamw(policy.parameters(), lr=0.1, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8)
    policy(torch.ones(3)).sum().backward()
    optimizer.step()

    def write_policy_files(folder: Path) -> None:
        (folder / "policy.json").write_text("{}\n")
        (folder / "spec.yaml").write_text("name: test\n")

    return TrainingParts(policy, optimizer, ProcessGroup(), write_policy_files)


def _save(store: CheckpointStore, *, step: int, seed: int = 0) -> Path:
    state = TrainState(window_states=MetricStates.of({"closs": (torch.ones(()), 1.0)}), step=step, best_step=1)
    return _written(store, _parts(seed), state)


def _written(store: CheckpointStore, parts: TrainingParts, state: TrainState) -> Path:
    return store.write(parts.capture(state), parts.group)[0]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def test_a_checkpoint_gives_back_state_optimiser_and_random_numbers(store) -> None:
    parts, fresh = _parts(), _parts(seed=1)
    state = TrainState(window_states=MetricStates.of({"closs": (torch.tensor(2.0), 4.0)}), step=7, best_step=1)
    path = _written(store, parts, state)
    expected = torch.rand(3)
    restored = fresh.restore(path)
    assert torch.equal(torch.rand(3), expected)
    assert (restored.step, restored.best_step, restored.window_states["closs"].mean().item()) == (7, 1, 0.5)
    assert torch.equal(fresh.policy.weight, parts.policy.weight)
    for mine, theirs in zip(fresh.optimizer.state.values(), parts.optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


def test_a_checkpoint_of_format_2_is_restored_as_it_was(tmp_path: Path) -> None:
    parts, fresh = _parts(), _parts(seed=1)
    save_file(parts.policy.state_dict(), tmp_path / "policy.safetensors")
    states = {"epoch": {}, "window": MetricStates.of({"closs": (torch.tensor(2.0), 4.0)}).state_dict()}
    random = [{"cpu": torch.get_rng_state(), "cuda": []}]
    stored = {"optimizer": parts.optimizer.state_dict(), "states": states, "random": random}
    torch.save(stored, tmp_path / "optimizer.pt")
    (tmp_path / "state.json").write_text(json.dumps({"counters": {"step": 7}}))
    listed = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        for file in tmp_path.iterdir()
    }
    (tmp_path / "files.json").write_text(json.dumps({"format": 2, "policy_sha256": "not read", "files": listed}))
    expected = torch.rand(3)
    restored = fresh.restore(tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert (restored.step, restored.window_states["closs"].mean().item()) == (7, 0.5)
    assert torch.equal(fresh.policy.weight, parts.policy.weight)
    for mine, theirs in zip(fresh.optimizer.state.values(), parts.optimizer.state.values(), strict=True):
        assert torch.equal(mine["exp_avg"], theirs["exp_avg"])
    weights = listed["policy.safetensors"]["sha256"]
    named = hashlib.sha256(f"{weights}  policy.safetensors\n".encode()).hexdigest()
    assert read_manifest(tmp_path).policy_sha256 == named


def test_a_metric_state_that_a_later_version_knows_does_not_break_an_older_checkpoint(store) -> None:
    path = _save(store, step=1)
    restored = _parts().restore(path)
    added = restored.window_states + MetricStates.of({"new_metric": (torch.ones(()), 1.0)})
    assert set(added) == {"closs", "new_metric"}


def test_the_last_and_the_best_checkpoints_stay(store) -> None:
    for step in (1, 2, 3, 4, 5):
        _save(store, step=step)
    store.delete(store.prune(keep_last=2, best_step=1))
    assert len(list(store.folder.glob("step-*"))) == 3
    assert [path.name for path in store.all()] == ["step-00000001", "step-00000004", "step-00000005"]


def test_a_checkpoint_that_was_never_completed_does_not_count(store) -> None:
    path = _save(store, step=1)
    (path / "files.json").unlink()
    assert store.all() == []
    with pytest.raises(CheckpointError, match=r"files\.json: no such file"):
        store.check(path)


def test_reaching_a_step_again_replaces_its_checkpoint(store) -> None:
    first = _save(store, step=3)
    before = (first / "policy.safetensors").read_bytes()
    second = _save(store, step=3, seed=1)
    assert first == second
    assert (second / "policy.safetensors").read_bytes() != before
    store.check(second)


@pytest.mark.parametrize("moment", ["while writing", "before the new one is in place", "after it is"])
def test_a_kill_while_a_checkpoint_is_replaced_never_loses_the_only_one(store, monkeypatch, moment: str) -> None:
    path = _save(store, step=3)
    before = (path / "policy.safetensors").read_bytes()

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    rename = Path.rename

    def die_at_the_second_rename(self: Path, target: Path) -> Path:
        if self.suffix == ".unfinished":
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        if moment == "while writing":
            patched.setattr(store_module, "write_manifest", die)
        elif moment == "before the new one is in place":
            patched.setattr(Path, "rename", die_at_the_second_rename)
        else:
            patched.setattr(shutil, "rmtree", lambda path, **named: die() if Path(path).suffix == ".replaced" else None)
        with pytest.raises(Killed):
            _save(store, step=3, seed=1)
    store.recover()
    (kept,) = store.all()
    store.check(kept)
    assert ((kept / "policy.safetensors").read_bytes() == before) == (moment != "after it is")
    assert [entry.name for entry in store.folder.glob(".step*")] == []


def test_a_checkpoint_that_was_being_deleted_is_removed(store) -> None:
    kept, half = _save(store, step=1), _save(store, step=2)
    (half / "files.json").unlink()  # the first that goes
    store.recover()
    assert [path.name for path in store.folder.glob("step-*")] == [kept.name]


def test_a_stamp_that_cannot_be_written_is_told_and_does_no_harm(store, caplog) -> None:
    path = _save(store, step=1)
    shutil.rmtree(store.folder / ".checked")
    (store.folder / ".checked").touch()
    store.check(path)
    assert "step-00000001 is verified each time" in caplog.text


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.output = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.output.weight = self.embed.weight


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    policy, again = Tied(), Tied()
    parts = dataclasses.replace(_parts(), policy=policy, optimizer=torch.optim.SGD(policy.parameters()))
    path = _written(CheckpointStore(tmp_path / "checkpoints"), parts, TrainState(step=1))
    assert list(load_file(path / "policy.safetensors")) == ["embed.weight"]
    load_weights(path, again)
    assert torch.equal(again.output.weight, policy.embed.weight)
    assert again.output.weight is again.embed.weight


def test_checkpoints_beyond_a_resume_are_set_aside_and_only_the_last_ones_stay_there(store) -> None:
    for step in (1, 2, 3, 4, 5):
        _save(store, step=step)
    store.set_aside_later(1, keep_last=2)
    assert [path.name for path in store.all()] == ["step-00000001"]
    assert sorted(path.name for path in (store.folder / "rewound").iterdir()) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_is_read_whole_once_and_again_only_when_a_file_has_changed(store, monkeypatch) -> None:
    path = _save(store, step=1)
    checked = []
    monkeypatch.setattr(store_module, "check_files", lambda folder, _, names: checked.append(sorted(names)))
    store.check(path)
    assert checked == []  # its digests are those of the files as they were written
    os.utime(path / "policy.safetensors", ns=(1, 1))
    store.check(path)
    store.check(path)
    assert checked == [["policy.safetensors"]]
    (store.folder / ".checked" / "step-00000001.json").write_bytes(b"")  # as a power cut leaves it
    store.check(path)
    assert [len(names) for names in checked] == [1, 5]


@pytest.mark.parametrize("name", ["policy.safetensors", "training/states.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "removed"])
def test_a_damaged_file_is_named(store, name: str, damage: str) -> None:
    path = _save(store, step=1)
    file = path / name
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=rf"{name}: (truncated or altered|no such file)"):
        store.check(path)


def test_a_tensor_file_that_nobody_has_verified_is_not_read(store) -> None:
    path = _save(store, step=1)
    shutil.copy(path / "policy.safetensors", path / "policy-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"policy-00001-of-00002\.safetensors: not of this checkpoint"):
        load_weights(path, nn.Linear(3, 2))


def test_a_checkpoint_of_a_later_version_is_refused(store) -> None:
    path = _save(store, step=1)
    listing = json.loads((path / "files.json").read_text())
    (path / "files.json").write_text(json.dumps({**listing, "format": 4}))
    with pytest.raises(CheckpointError, match="has format 4, this vlatrack reads up to 3; update vlatrack"):
        store.check(path)


def test_a_file_name_that_leaves_the_checkpoint_is_refused(store) -> None:
    path = _save(store, step=1)
    listing = json.loads((path / "files.json").read_text())
    listing["files"]["../../outside"] = {"sha256": "0" * 64, "bytes": 1}
    (path / "files.json").write_text(json.dumps(listing))
    with pytest.raises(CheckpointError, match="lies outside the checkpoint"):
        store.check(path)


def test_the_digest_of_a_policy_does_not_depend_on_its_optimiser_or_paths(store) -> None:
    one = read_manifest(_save(store, step=1))
    two = read_manifest(_save(store, step=2))
    assert one.policy_sha256 == two.policy_sha256
    assert one.policy_sha256 != read_manifest(_save(store, step=3, seed=1)).policy_sha256


_FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_checkpoints import _parts, _save
from vlatrack.errors import CheckpointError
from vlatrack.training.checkpoint.store import CheckpointStore
store = CheckpointStore(Path(sys.argv[1]))
_save(store, step=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    _save(store, step=2)
except CheckpointError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(error)
print([path.name for path in store.folder.iterdir() if path.name != ".checked"])
"""


@pytest.mark.parametrize(
    "size", [pytest.param(1, marks=pytest.mark.slow), 100, pytest.param(1000, marks=pytest.mark.slow)]
)
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path: Path, size: int) -> None:
    """A limit on the size of a file stands in for a disk that takes so many bytes and no more."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "checkpoints"), str(Path(__file__).parent), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    line, left = done.stdout.splitlines()
    assert "a checkpoint cannot be written" in line
    assert line.endswith("; free some disk space")
    assert left == "['step-00000001']"
