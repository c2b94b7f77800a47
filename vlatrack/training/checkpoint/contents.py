"""The files of one checkpoint folder: what is in them, and how a training or a policy is restored from them.

A checkpoint is a folder ``step-<number>``:

    policy.json            the policy: backbone and its geometry, bins, normalisation, fingerprints of its data
    policy.safetensors     the weights; of several ranks policy-00001-of-00002.safetensors, …
    spec.yaml  text_tokenizer/  image_tokenizer/
    training/              states.safetensors, or one file of each rank: optimiser, metric states summed over ranks; and
                           the weights that training goes on with, where averages of them are the policy
    state.json             counters of the training, random generators of each rank
    files.json             format version, sha256 and size of all other files, digest of the policy

training/ and state.json are only needed to resume; an exported policy has neither. Each rank writes the tensors that it
holds, and any number of ranks reads them (see `shards`). Formats 1 and 2 are read as well (see `old_formats`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.planner import SavePlan

from vlatrack.errors import DISK_IS_FULL, CheckpointError
from vlatrack.metrics.states import MetricStates
from vlatrack.models.backbones.four_bits import FourBitLinear
from vlatrack.models.backbones.pretrained import weights_without_adapters
from vlatrack.training.checkpoint.manifest import STATE, TRAINING, StoredFile, read_manifest
from vlatrack.training.checkpoint.old_formats import restore_old_states
from vlatrack.training.checkpoint.shards import SUFFIX, HostCopies, Shard, StoredTensors
from vlatrack.training.checkpoint.states import optimizer_states, random_from_json, random_to_json, restore_optimizer
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import RandomState, TrainState

WEIGHTS_STEM, STATES_STEM = "policy", "states"
_CPU = torch.device("cpu")
_METRICS, _WEIGHTS = "metrics.", "weights."


@dataclass(frozen=True)
class TrainingParts:
    """The parts of a running training that a checkpoint saves and restores."""

    policy: nn.Module
    optimizer: torch.optim.Optimizer
    group: ProcessGroup
    write_policy_files: Callable[[Path], None]  # policy.json, spec.yaml, tokenizers; into a folder
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    """Averages of weights, by their names and sharded as they are: they are saved as the weights of the policy, and the
    weights that the training goes on with beside its states. Both are restored in place."""
    device: torch.device = _CPU
    """Where the policy computes, and so its metric states are; its parameters may be elsewhere."""

    def capture(self, state: TrainState, copies: tuple[HostCopies, HostCopies] | None = None) -> "Snapshot":
        """What this rank has to write of the training at ``state``. All ranks call this.

        Args:
            copies: take copies of weights and of states, so that the training may go on meanwhile; None: it must not
                go on before the snapshot has been written.
        """
        own = self.policy.state_dict()  # before the parameters are looked at: this has FSDP2 shard them again
        weights = {name: own[name] for name, stored in stored_names(self.policy, own).items() if name == stored}
        states, numbers = optimizer_states(self.policy, self.optimizer)
        states |= self._averaged_weights(own)
        for window, part in (("epoch", state.epoch_states), ("window", state.window_states)):
            summed = self.group.sum_states(part).state_dict()
            states |= {f"{_METRICS}{window}.{name}": value for name, value in summed.items()}
        of_weights, of_states = copies or (None, None)
        return Snapshot(
            state.step,
            Shard({**weights, **self.averages}, of_weights),
            Shard(states, of_states),
            {"random": random_to_json(RandomState.capture())},
            {"counters": state.counters(), "optimizer": numbers},
            self.write_policy_files,
        )

    def restore(self, checkpoint: Path) -> TrainState:
        """Restore weights, optimiser and this rank's random generators from a verified checkpoint.

        The stored metric states are sums over all ranks: rank 0 continues with them, the others with empty ones. A rank
        that did not exist when the checkpoint was made keeps its generators.

        Raises:
            CheckpointError: a file is damaged, or of another geometry or optimiser.
        """
        content = read_state(checkpoint)
        if read_manifest(checkpoint).format < 3:
            load_weights(checkpoint, self.policy)
            states = restore_old_states(checkpoint, self.optimizer, self.group.rank)
        else:
            states = self._restore_states(checkpoint, content)
        epoch, window = states if self.group.is_main_process else (MetricStates(), MetricStates())
        return TrainState.restored(content["counters"], epoch.to(self.device), window.to(self.device))

    def _restore_states(self, checkpoint: Path, content: Mapping[str, Any]) -> tuple[MetricStates, MetricStates]:
        stored = StoredTensors(_listed_folder(checkpoint, TRAINING))
        try:
            restore_optimizer(self.policy, self.optimizer, stored, content["optimizer"])
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
        load_weights(checkpoint, self.policy)
        weights = self._averaged_weights(self.policy.state_dict())
        if lacking := weights.keys() - stored.shapes.keys():
            raise CheckpointError(f"{checkpoint}: lacks {min(lacking)}; it was made without averages of the weights")
        stored_weights(checkpoint).read_into(self.averages)
        stored.read_into(weights)
        by_rank = content["random"]
        if self.group.rank < len(by_rank):
            random_from_json(by_rank[self.group.rank]).restore()
        epoch, window = (
            {name.removeprefix(prefix): stored.read(name) for name in stored.shapes if name.startswith(prefix)}
            for prefix in (f"{_METRICS}epoch.", f"{_METRICS}window.")
        )
        return MetricStates.from_state_dict(epoch), MetricStates.from_state_dict(window)

    def _averaged_weights(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{_WEIGHTS}{name}": own[name] for name in self.averages}


@dataclass(frozen=True)
class Snapshot:
    """What one rank has to write of a checkpoint."""

    step: int
    weights: Shard
    states: Shard
    of_rank: Mapping[str, Any]  # JSON values that every rank has its own of
    of_all: Mapping[str, Any]  # JSON values that are the same on all ranks
    write_policy_files: Callable[[Path], None]

    @property
    def plans(self) -> tuple[SavePlan, SavePlan]:
        """What this rank could write, for the others."""
        return self.weights.plan, self.states.plan

    def write_tensors(
        self, folder: Path, plans: Sequence[tuple[SavePlan, SavePlan]], rank: int
    ) -> dict[str, StoredFile]:
        """Write this rank's tensors into a checkpoint's folder, given the plans of all ranks; returns the files.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        of_weights, of_states = zip(*plans, strict=True)
        with clear_write_errors(folder):
            files = self.weights.write(folder, WEIGHTS_STEM, of_weights, rank)
            states = self.states.write(folder / TRAINING, STATES_STEM, of_states, rank)
        return files | {f"{TRAINING}/{name}": file for name, file in states.items()}

    def write_rest(self, folder: Path, of_ranks: Sequence[Mapping[str, Any]]) -> None:
        """Write what is not tensors, given ``of_rank`` of all ranks.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        gathered = {name: [own[name] for own in of_ranks] for name in self.of_rank}
        with clear_write_errors(folder):
            self.write_policy_files(folder)
            (folder / STATE).write_text(json.dumps({**self.of_all, **gathered}) + "\n")


def read_counters(checkpoint: Path) -> dict[str, Any]:
    """The counters of state.json.

    Raises:
        CheckpointError: it is an exported policy, or damaged.
    """
    counters: dict[str, Any] = read_state(checkpoint)["counters"]
    return counters


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json.

    Raises:
        CheckpointError: it is an exported policy, or damaged.
    """
    try:
        content: dict[str, Any] = json.loads((checkpoint / STATE).read_text())
        if "counters" not in content:
            raise ValueError("it has no counters")
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: an exported policy; a training resumes from its run only") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATE}: not readable ({error})") from error
    return content


def load_weights(checkpoint: Path, policy: nn.Module) -> None:
    """Copy a checkpoint's weights into ``policy``; into a sharded one, each rank its part.

    Raises:
        CheckpointError: a file is damaged or of another geometry.
    """
    stored = StoredTensors(_listed_folder(checkpoint))
    for name, tensor in _fitting(checkpoint, policy, stored).items():
        stored.read_into({name: tensor})  # one at a time: what is read of a file counts as memory while it is open


def check_weights(checkpoint: Path, policy: nn.Module) -> None:
    """Compare a checkpoint's weights with those of ``policy``, which may be on the meta device, by their shapes.

    Raises:
        CheckpointError: a file is damaged or of another geometry.
    """
    _fitting(checkpoint, policy, StoredTensors(_listed_folder(checkpoint)))


def load_weights_beside_adapters(checkpoint: Path, policy: nn.Module) -> None:
    """Copy the weights of a checkpoint without adapters into a ``policy`` that may have got some since the weights were
    found to fit (see ``check_weights``); layers in 4 bits are rounded as their weights are read.

    Raises:
        CheckpointError: a file is damaged.
    """
    stored = StoredTensors(_listed_folder(checkpoint))
    names = stored.shapes
    for name, target in weights_without_adapters(policy).items():
        if isinstance(target, FourBitLinear):
            target.fill(stored.read(name))
        elif name in names:  # it is not where it is tied to another
            stored.read_into({name: target})


def _fitting(checkpoint: Path, policy: nn.Module, stored: StoredTensors) -> dict[str, Tensor]:
    """The tensors of a policy that are stored, by the names under which they are.

    Raises:
        CheckpointError: the stored ones are of another geometry.
    """
    own = policy.state_dict()
    names = stored_names(policy, own)
    wanted = {name: own[name] for name, kept in names.items() if name == kept}
    if problem := _misfit({name: tuple(tensor.shape) for name, tensor in wanted.items()}, stored.shapes, names):
        raise CheckpointError(f"{checkpoint}: of another geometry than this experiment ({problem})")
    return wanted


def stored_weights(checkpoint: Path) -> StoredTensors:
    """The weights in a checkpoint of any format, by name.

    Raises:
        CheckpointError: a file is damaged.
    """
    return StoredTensors(_listed_folder(checkpoint))


def _misfit(
    wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> str | None:
    """In what a policy differs from the stored one; None if it does not."""
    for name, shape in wanted.items():
        if name not in stored:
            return f"{name} is missing"
        if stored[name] != shape:
            return f"size mismatch for {name}: {list(stored[name])} is stored, {list(shape)} is needed"
    unknown = sorted(stored.keys() - names.keys())
    return f"{unknown[0]} is unknown" if unknown else None


def _listed_folder(checkpoint: Path, folder: str = "") -> Path:
    """A folder of a checkpoint, all of whose tensors are to be read.

    Raises:
        CheckpointError: it has files that the manifest, and so whoever verified it, does not know.
    """
    known = read_manifest(checkpoint).sha256
    place = checkpoint / folder
    for file in sorted(place.glob(f"*{SUFFIX}")):
        if file.relative_to(checkpoint).as_posix() not in known:
            raise CheckpointError(f"{file}: not of this checkpoint (files.json does not name it); remove it")
    return place


def stored_names(policy: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The name under which each tensor of a state dict is stored: that of the first, where several are one, such as
    tied weights. It is the same on all ranks, also where one of them holds nothing of a tensor."""
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    first: dict[tuple[object, ...], str] = {}
    names = {}
    for name, value in state.items():
        if name in parameters:
            names[name] = first.setdefault((id(parameters[name]),), name)
        elif value.numel() and not value.is_meta:
            names[name] = first.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), name)
        else:
            names[name] = name
    return names


@contextmanager
def clear_write_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise when a file cannot be written into a one-line CheckpointError with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_IS_FULL:
            reason, remedy = error.strerror or str(error), "check its permissions"
        else:
            reason, remedy = str(error).splitlines()[0], "free some disk space"
        raise CheckpointError(f"{folder.parent}: a checkpoint cannot be written ({reason}); {remedy}") from error
