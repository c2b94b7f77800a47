"""Checkpoints: whole or not there at all, and told apart when damaged.

A checkpoint is a folder ``step-<number>``: ``policy.safetensors`` (weights), ``optimizer.pt``
(optimiser, running sums over all ranks, generators of each rank; tensors and plain numbers only),
``state.json`` (counters and identity) and ``files.json`` (sha256 of the other three). It is written under
another name and renamed, so a folder of that name is complete.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vlatrack.errors import CheckpointError
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.bins import ValueRange
from vlatrack.training.ranks import Ranks
from vlatrack.training.state import RandomState, TrainState

_WEIGHTS, _OPTIMIZER, _STATE, _FILES = "policy.safetensors", "optimizer.pt", "state.json", "files.json"


@dataclass(frozen=True)
class Identity:
    """What must be the same for a checkpoint to mean the same."""

    bins: int
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    state_low: tuple[float, ...] | None
    state_high: tuple[float, ...] | None

    @classmethod
    def of(cls, bins: int, actions: ValueRange, states: ValueRange | None) -> Self:
        return cls(bins, actions.low, actions.high, states.low if states else None, states.high if states else None)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**fields)

    def check_equal(self, other: "Identity", place: Path) -> None:
        """Raise CheckpointError, naming what differs."""
        for name, mine in asdict(self).items():
            theirs = getattr(other, name)
            if mine != theirs:
                raise CheckpointError(
                    f"{place}: {name} was {_short(theirs)} when this checkpoint was made, is {_short(mine)} now; "
                    "actions would be decoded wrongly (same data and tokenizer settings are needed)"
                )


def save_checkpoint(
    folder: Path,
    *,
    policy: VlaPolicy,
    optimizer: torch.optim.Optimizer,
    state: TrainState,
    identity: Identity,
    ranks: Ranks,
) -> Path:
    """Write ``folder``/step-<number> and return it. All ranks call this, the first one writes."""
    target = folder / f"step-{state.step:08d}"
    epoch, window = ranks.total_sums(state.epoch_sums), ranks.total_sums(state.window_sums)
    random = ranks.gather(asdict(RandomState.capture()))
    if not ranks.is_first:
        return target
    unfinished = folder / f".{target.name}.{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in policy.state_dict().items()}, unfinished / _WEIGHTS)
    tensors = {
        "optimizer": optimizer.state_dict(),
        "sums": replace(state, epoch_sums=epoch, window_sums=window).sums(),
        "random": random,
    }
    torch.save(tensors, unfinished / _OPTIMIZER)
    (unfinished / _STATE).write_text(json.dumps({"counters": state.counters(), "identity": asdict(identity)}) + "\n")
    digests = {name: _sha256(unfinished / name) for name in (_WEIGHTS, _OPTIMIZER, _STATE)}
    (unfinished / _FILES).write_text(json.dumps(digests) + "\n")
    _flush(unfinished)
    if target.exists():  # a resumed run reached this step again
        shutil.rmtree(target)
    unfinished.rename(target)
    return target


def read_state(checkpoint: Path) -> tuple[dict[str, Any], Identity]:
    """Counters and identity of a checkpoint, after checking that its files are whole.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    try:
        digests = json.loads((checkpoint / _FILES).read_text())
        for name in (_WEIGHTS, _OPTIMIZER, _STATE):
            if _sha256(checkpoint / name) != digests[name]:
                raise CheckpointError(f"{checkpoint / name}: truncated or altered (its sha256 differs from {_FILES})")
        stored = json.loads((checkpoint / _STATE).read_text())
        return stored["counters"], Identity.from_json(stored["identity"])
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file; not a complete checkpoint") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: not a readable checkpoint ({error})") from error


def load_policy(checkpoint: Path, policy: VlaPolicy) -> None:
    """Copy a checkpoint's weights into ``policy``.

    Raises:
        CheckpointError: the file is damaged or of another geometry.
    """
    try:
        policy.load_state_dict(load_file(checkpoint / _WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint / _WEIGHTS}: unreadable or truncated ({error})") from error
    except RuntimeError as error:
        problem = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{checkpoint}: of another geometry than this experiment ({problem})") from error


def load_training(
    checkpoint: Path, optimizer: torch.optim.Optimizer, counters: dict[str, Any], device: torch.device, *, rank: int
) -> TrainState:
    """Restore the optimiser and this rank's generators; return the training state.

    The stored sums are those of all ranks: the first one goes on with them, the others from nothing. A rank that there
    was none of when the checkpoint was made keeps the generators that it has.
    """
    stored = torch.load(checkpoint / _OPTIMIZER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(stored["optimizer"])
    random = stored["random"]
    by_rank = random if isinstance(random, list) else [random]  # one alone, before several processes could train
    if rank < len(by_rank):
        RandomState(**by_rank[rank]).restore()
    state = TrainState.restored(counters, stored["sums"], device)
    return state if rank == 0 else state.without_sums()


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _FILES).is_file())


def step_of(checkpoint: Path) -> int:
    """The optimiser steps that were done when a checkpoint was made, from its name."""
    return int(checkpoint.name.removeprefix("step-"))


def set_aside_later(folder: Path, step: int) -> None:
    """Move checkpoints beyond ``step`` into ``folder``/rewound: training from there makes others of these numbers."""
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            kept = folder / "rewound" / path.name
            kept.parent.mkdir(exist_ok=True)
            if kept.exists():  # from an earlier time that training went back
                shutil.rmtree(kept)
            path.rename(kept)


def remove_old(folder: Path, *, keep_last: int, best_step: int | None) -> None:
    """Delete all but the last ``keep_last`` checkpoints and the best one."""
    for path in list_checkpoints(folder)[:-keep_last]:
        if best_step is None or path.name != f"step-{best_step:08d}":
            shutil.rmtree(path)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Reach the disk before the rename does: a power cut must not leave a complete-looking shell."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
