"""Checkpoints of earlier versions, whose optimiser, metric states and generators are in one file, optimizer.pt.

Format 1 (vlatrack 0.1.0) had only the weights, optimizer.pt, state.json with bins and ranges, and files.json. Format 2
had policy.json, tokenizers and spec as well. The weights of both are one file, policy.safetensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatrack.metrics.states import MetricStates, states_from_v1
from vlatrack.training.checkpoint.manifest import OPTIMIZER
from vlatrack.training.distributed import part_for
from vlatrack.training.state import RandomState


def restore_old_states(
    checkpoint: Path, optimizer: torch.optim.Optimizer, rank: int
) -> tuple[MetricStates, MetricStates]:
    """Restore the optimiser and this rank's generators; returns the metric states of the epoch and of the window."""
    stored = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(_parts_of_state(stored["optimizer"], optimizer))
    random = stored["random"]
    by_rank = random if isinstance(random, list) else [random]
    if rank < len(by_rank):
        RandomState(**by_rank[rank]).restore()
    if "sums" in stored:  # format 1
        return states_from_v1(stored["sums"]["epoch_sums"]), states_from_v1(stored["sums"]["window_sums"])
    states = stored["states"]
    return MetricStates.from_state_dict(states["epoch"]), MetricStates.from_state_dict(states["window"])


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
