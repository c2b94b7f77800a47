"""Weights of pretrained folders: streamed, and told apart."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vlatrack.errors import CheckpointError
from vlatrack.models.backbones import pretrained
from vlatrack.models.backbones.chameleon.pretrained import CHAMELEON_WEIGHTS
from vlatrack.models.backbones.pretrained import (
    PretrainedWeights,
    copy_weights,
    open_pretrained,
    pretrained_fingerprint,
)

SAVERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "model.safetensors": save_file,
    "pytorch_model.bin": torch.save,
    "model.pth": lambda state, file: torch.save({"model": state}, file),
}


@pytest.fixture
def state(make_policy) -> dict[str, Tensor]:
    """The backbone of a policy under the names of a checkpoint from outside."""
    torch.manual_seed(7)
    own = make_policy().backbone.chameleon.state_dict()
    return {name: torch.randn_like(value) for name, value in own.items()}


def folder_with(path: Path, state: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "chameleon", "hidden_size": 32}))
    SAVERS[name](state, path / name)
    return path


@pytest.mark.parametrize("name", SAVERS)
def test_weights_of_every_format_reach_the_policy(tmp_path, make_policy, state, name) -> None:
    policy = make_policy()
    folder = open_pretrained(str(folder_with(tmp_path / "folder", state, name)))
    assert PretrainedWeights(folder, CHAMELEON_WEIGHTS).copy_into(policy) is False
    for name, value in policy.backbone.chameleon.state_dict().items():
        assert torch.equal(value, state[name])


def test_one_tensor_at_a_time_is_in_memory(tmp_path, make_policy, state) -> None:
    """Counted when the next one is read: whatever was read before is gone by then."""
    folder = open_pretrained(str(folder_with(tmp_path / "folder", state)))
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    counts = []

    def counting(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        while True:
            counts.append(len(alive))
            pair = next(tensors, None)
            if pair is None:
                return
            alive.add(pair[1])
            yield pair
            del pair

    gc.disable()
    try:
        copy_weights(make_policy(), counting(folder.tensors()), CHAMELEON_WEIGHTS)
    finally:
        gc.enable()
    assert len(counts) == len(state) + 1
    assert set(counts) == {0}


def test_only_tensors_of_a_prefix_are_read(tmp_path, state) -> None:
    folder = open_pretrained(str(folder_with(tmp_path / "folder", state)))
    assert [name for name, _ in folder.tensors("lm_head.")] == ["lm_head.weight"]


def test_a_pickle_of_before_torch_1_6_is_read_as_well(tmp_path, state) -> None:
    folder = folder_with(tmp_path / "folder", state, "pytorch_model.bin")
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    read = dict(open_pretrained(str(folder)).tensors())
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_the_fingerprint_of_a_folder_does_not_depend_on_where_it_lies_or_who_saved_it(tmp_path, state) -> None:
    first = folder_with(tmp_path / "here", state)
    before = pretrained_fingerprint(first)
    second = tmp_path / "there"
    shutil.copytree(first, second)
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({"_name_or_path": str(first), **config}, indent=4))
    assert pretrained_fingerprint(second) == before


def _another_number(folder: Path, state: dict[str, Tensor]) -> None:
    name = sorted(state)[len(state) // 2]
    save_file(state | {name: state[name] + 1}, folder / "model.safetensors")


def _another_name(folder: Path, state: dict[str, Tensor]) -> None:
    renamed = {name.replace("lm_head", "head"): value for name, value in state.items()}
    save_file(renamed, folder / "model.safetensors")


def _another_config(folder: Path, _: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "chameleon", "hidden_size": 48}))


def _a_tokenizer(folder: Path, _: dict[str, Tensor]) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("change", [_another_number, _another_name, _another_config, _a_tokenizer])
def test_the_fingerprint_of_another_model_is_another(tmp_path, monkeypatch, state, change) -> None:
    monkeypatch.setattr(pretrained, "_MIB", 200_000)  # the file has 2 MB: what lies between the samples is not read
    folder = folder_with(tmp_path / "folder", state)
    before = pretrained_fingerprint(folder)
    change(folder, state)
    assert pretrained_fingerprint(folder) != before


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights in it"):
        open_pretrained(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_config_that_is_none_is_refused(tmp_path, content) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: not "):
        open_pretrained(str(tmp_path))
