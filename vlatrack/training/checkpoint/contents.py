"""The files of one checkpoint folder: how they are written, verified and read.

A checkpoint is a folder ``step-<number>``:

    policy.json            the policy: backbone and its geometry, bins, normalisation, fingerprints of its data
    policy.safetensors     the weights, or their average if train.ema asks for one
    spec.yaml  text_tokenizer/  image_tokenizer/
    optimizer.pt           optimiser, metric states summed over ranks, random generators, the weights of the last step
                           beside an average; only tensors and numbers
    state.json             counters of the training
    files.json             format version, sha256 and size of all other files

optimizer.pt and state.json are only needed to resume; an exported policy has neither. Format 1 (vlatrack 0.1.0) had
only the weights, optimizer.pt, state.json with bins and ranges, and files.json.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlatrack.errors import DISK_IS_FULL, CheckpointError
from vlatrack.metrics.states import MetricStates, states_from_v1
from vlatrack.training.distributed import part_for, whole
from vlatrack.training.ema import WeightAverage, copy_weights
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import RandomState, TrainState

FORMAT = 2
WEIGHTS, POLICY, FILES = "policy.safetensors", "policy.json", "files.json"
OPTIMIZER, STATE = "optimizer.pt", "state.json"
TRAINING_FILES = (OPTIMIZER, STATE)
"""Needed to resume a training, not to act."""

_TORCH_SAVE = ("PytorchStreamWriter", "inline_container", "iostream")
"""Names in the message of the RuntimeError that torch.save raises when a file cannot be written."""

_NOT_THE_POLICY = (*TRAINING_FILES, "spec.yaml")
"""Left out of the policy's digest. spec.yaml also holds paths and trackers, which do not change the policy."""


@dataclass(frozen=True)
class Manifest:
    """files.json: the files of a checkpoint and their digests."""

    format: int
    sha256: Mapping[str, str]  # by path inside the checkpoint
    size: Mapping[str, int]  # bytes; empty in format 1

    @property
    def policy_sha256(self) -> str:
        """The policy's digest, which names it everywhere: sha256 over all files that decide how it acts."""
        listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.policy_files().items()))
        return hashlib.sha256(listing.encode()).hexdigest()

    def policy_files(self) -> dict[str, str]:
        return {name: digest for name, digest in self.sha256.items() if name not in _NOT_THE_POLICY}


def read_manifest(checkpoint: Path) -> Manifest:
    """files.json of a checkpoint.

    Raises:
        CheckpointError: there is none, it is damaged, or a later vlatrack wrote it.
    """
    try:
        stored = json.loads((checkpoint / FILES).read_text())
        if "format" not in stored:
            return Manifest(1, dict(stored), {})
        if stored["format"] > FORMAT:
            raise CheckpointError(
                f"{checkpoint}: has format {stored['format']}, this vlatrack reads up to {FORMAT}; update vlatrack"
            )
        files = stored["files"]
        digests = {name: str(entry["sha256"]) for name, entry in files.items()}
        return Manifest(stored["format"], digests, {name: int(entry["bytes"]) for name, entry in files.items()})
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file; not a complete checkpoint") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint / FILES}: not readable ({error})") from error


def check_files(checkpoint: Path, manifest: Manifest) -> None:
    """Read every file and compare its sha256 with the manifest.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    for name, expected in manifest.sha256.items():
        file = inside(checkpoint, name)
        try:
            with file.open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{file}: {error.strerror}; not a complete checkpoint") from error
        if actual != expected:
            raise CheckpointError(f"{file}: truncated or altered (its sha256 differs from {FILES})")


def inside(checkpoint: Path, name: str) -> Path:
    """The path of a file of the manifest.

    Raises:
        CheckpointError: the name leads out of the checkpoint.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointError(f"{checkpoint / FILES}: names {name!r}, which lies outside the checkpoint")
    return checkpoint / name


@dataclass(frozen=True)
class TrainingParts:
    """The parts of a running training that a checkpoint saves and restores."""

    policy: nn.Module
    optimizer: torch.optim.Optimizer
    group: ProcessGroup
    write_policy_files: Callable[[Path], None]  # policy.json, spec.yaml, tokenizers; into a folder
    average: WeightAverage | None = None

    def gather(self, state: TrainState) -> dict[str, Any]:
        """The weights and the content of optimizer.pt, whole on the main process. All ranks call this."""
        states = {"epoch": state.epoch_states, "window": state.window_states}
        summed = {name: self.group.sum_states(own).state_dict() for name, own in states.items()}
        random = self.group.all_gather(asdict(RandomState.capture()))
        own, kept = self.policy.state_dict(), self.group.is_main_process
        once = {name: own[name] for name, stored in _stored_names(own).items() if name == stored}
        parts: dict[str, Any] = {"weights": once, "optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            parts |= {"weights": once | self.average.tensors(), "last_weights": self.average.own_weights()}
        with self.group.noticing_lost_ranks():
            return {**whole(parts, kept=kept), "states": summed, "random": random}

    def write(self, folder: Path, state: TrainState, tensors: Mapping[str, Any]) -> Manifest:
        """Write a whole checkpoint into an empty folder and flush it to the disk.

        Raises:
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        weights = {name: value.contiguous() for name, value in tensors["weights"].items()}
        with clear_write_errors(folder):
            self.write_policy_files(folder)
            save_file(weights, folder / WEIGHTS)
            torch.save({name: part for name, part in tensors.items() if name != "weights"}, folder / OPTIMIZER)
            (folder / STATE).write_text(json.dumps({"counters": state.counters()}) + "\n")
            return write_manifest(folder)

    def restore(self, checkpoint: Path) -> TrainState:
        """Restore weights, optimiser and this rank's random generators from a verified checkpoint.

        The stored metric states are sums over all ranks: rank 0 continues with them, the others with empty ones. A rank
        that did not exist when the checkpoint was made keeps its generators.
        """
        load_weights(checkpoint, self.policy)
        stored = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(_parts_of_state(stored["optimizer"], self.optimizer))
        if self.average is not None:
            weights, last = load_file(checkpoint / WEIGHTS), self.average.own_weights()
            self.average.load({name: part_for(own, weights[name]) for name, own in last.items()})
            copy_weights({name: part_for(own, stored["last_weights"][name]) for name, own in last.items()}, last)
        random = stored["random"]
        by_rank = random if isinstance(random, list) else [random]
        rank = self.group.rank
        if rank < len(by_rank):
            RandomState(**by_rank[rank]).restore()
        epoch, window = _metric_states(stored) if rank == 0 else (MetricStates(), MetricStates())
        device = next(self.policy.parameters()).device
        return TrainState.restored(read_counters(checkpoint), epoch.to(device), window.to(device))


def _parts_of_state(stored: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole optimiser's state dict with this rank's part of what is as large as its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            name: part_for(parameters[number], value)
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in stored["state"].items()
    }
    return {**stored, "state": state}


def _metric_states(stored: Mapping[str, Any]) -> tuple[MetricStates, MetricStates]:
    """The states of the epoch and of the window."""
    if "sums" in stored:  # format 1
        return states_from_v1(stored["sums"]["epoch_sums"]), states_from_v1(stored["sums"]["window_sums"])
    states = stored["states"]
    return MetricStates.from_state_dict(states["epoch"]), MetricStates.from_state_dict(states["window"])


def write_manifest(folder: Path) -> Manifest:
    """Write files.json, with the sha256 of every file below ``folder``, and flush all of them to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FILES)
    digests, sizes = {}, {}
    for file in files:
        name = file.relative_to(folder).as_posix()
        with file.open("rb") as stream:
            digests[name] = hashlib.file_digest(stream, "sha256").hexdigest()
        sizes[name] = file.stat().st_size
    manifest = Manifest(FORMAT, digests, sizes)
    listing = {name: {"sha256": digests[name], "bytes": sizes[name]} for name in digests}
    content = {"format": FORMAT, "policy_sha256": manifest.policy_sha256, "files": listing}
    (folder / FILES).write_text(json.dumps(content, indent=1) + "\n")
    for path in [*folder.rglob("*"), folder]:  # before the rename, so that a power cut leaves no empty files
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return manifest


def read_counters(checkpoint: Path) -> dict[str, Any]:
    """The counters of state.json.

    Raises:
        CheckpointError: it is an exported policy, or damaged.
    """
    try:
        counters: dict[str, Any] = json.loads((checkpoint / STATE).read_text())["counters"]
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: an exported policy; a training resumes from its run only") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATE}: not readable ({error})") from error
    return counters


def load_weights(checkpoint: Path, policy: nn.Module) -> None:
    """Copy a checkpoint's weights into ``policy``.

    Raises:
        CheckpointError: the file is damaged or of another geometry.
    """
    try:
        weights = load_file(checkpoint / WEIGHTS)
        own = policy.state_dict()
        shared = {name: kept for name, kept in _stored_names(own).items() if name != kept}
        weights |= {name: weights[kept] for name, kept in shared.items() if kept in weights}
        policy.load_state_dict({k: part_for(own[k], value) if k in own else value for k, value in weights.items()})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint / WEIGHTS}: unreadable or truncated ({error})") from error
    except RuntimeError as error:
        problem = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{checkpoint}: of another geometry than this experiment ({problem})") from error


def _stored_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The name under which each tensor is stored: that of the first, where several are one, such as tied weights."""
    first: dict[tuple[object, ...], str] = {}
    names = {}
    for name, value in state.items():
        held = value.to_local() if isinstance(value, DTensor) else value
        same = (held.data_ptr(), value.dtype, value.shape, value.stride())
        names[name] = first.setdefault(same, name) if held.numel() else name
    return names


@contextmanager
def clear_write_errors(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise when a file cannot be written into a one-line CheckpointError with the remedy."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if type(error) is RuntimeError and not any(name in str(error) for name in _TORCH_SAVE):
            raise
        if isinstance(error, OSError) and error.errno not in DISK_IS_FULL:
            reason, remedy = error.strerror or str(error), "check its permissions"
        else:
            reason, remedy = str(error).splitlines()[0], "free some disk space"
        raise CheckpointError(f"{folder.parent}: a checkpoint cannot be written ({reason}); {remedy}") from error
