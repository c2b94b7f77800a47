"""One of several ranks: trains a small policy with one optimiser after the other, whole and in two halves with a
checkpoint between them, and writes as JSON what came of it.

Arguments: a folder, then the optimisers, as `stochastic,replicate=2`.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from arithmetic import Arithmetic
from tiny_policy import LAYOUT
from training_rank import make_policy, micro_batches, rows_of_step

from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import store_parameters
from vlatrack.tokens.batch import collate
from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.distributed import distribute, local_part, parallel_shape, process_mesh
from vlatrack.training.ema import WeightAverage
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import muon, parameter_groups
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState

HALF = 2  # steps
COMMON: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


class Case:
    """A policy with its optimiser and the average of its weights."""

    def __init__(self, ways: set[str], group: ProcessGroup) -> None:
        self.group, self.bf16 = group, bool(ways & {"stochastic", "kahan"})
        self.policy: VlaPolicy = make_policy(set()).train()
        if self.bf16:
            store_parameters(self.policy, torch.bfloat16)
        replicate = 2 if "replicate=2" in ways else None
        shape = parallel_shape(group.world_size, group.per_machine, shard=None, replicate=replicate)
        offload = "offloaded" in ways
        mesh = process_mesh(shape, torch.device("cpu"), offloads=offload)
        distribute(self.policy, mesh, offload=offload)
        self.optimizer = self._optimizer(ways)
        self.average = WeightAverage(self.policy, decay=0.9)
        self.parts = TrainingParts(self.policy, self.optimizer, group, lambda folder: None, self.average.tensors())

    def _optimizer(self, ways: set[str]) -> torch.optim.Optimizer:
        groups = parameter_groups(self.policy, [], lr=COMMON["lr"])
        if "muon" in ways:
            return muon(self.policy, groups, **COMMON)
        return CompactAdamW(groups, rounding="kahan" if "kahan" in ways else "stochastic", states="bf16", **COMMON)

    def train(self, steps: range) -> list[float]:
        """The loss of each step."""
        losses = []
        for step in steps:
            rows = rows_of_step(step)
            whole = collate(rows, LAYOUT)
            result = train_step(
                self.policy,
                self.optimizer,
                micro_batches(rows, self.group),
                self.policy.loss_counts(whole),
                accelerator=Arithmetic(bf16=self.bf16),
                group=self.group,
                lr=COMMON["lr"],
                clip_grad=1.0,
                trains_head=len(whole.action_rows) > 0,
                step=step,
            )
            self.average.update(step + 1, result.finite)
            losses.append(*self.group.sum([result.loss.item()]))
        return losses

    def held(self) -> str:
        """A digest of all that this rank holds: weights, states and averages."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [local_part(t) for t in [*self.policy.parameters(), *states, *self.average.tensors().values()]]
        return hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in tensors)).hexdigest()


def outcome(ways: set[str], group: ProcessGroup, store: CheckpointStore) -> dict[str, Any]:
    uninterrupted, first, second = (Case(ways, group) for _ in range(3))
    losses = uninterrupted.train(range(2 * HALF))
    first.train(range(HALF))
    path, _ = store.write(first.parts.capture(TrainState(step=HALF)), group)
    second.parts.restore(path)
    resumed = second.train(range(HALF, 2 * HALF))
    return {
        "losses": losses,
        "resumed": resumed == losses[HALF:] and all(group.all_gather(second.held() == uninterrupted.held())),
        "ranks hold the same": len(set(group.all_gather(uninterrupted.held()))) == 1,
    }


def main(folder: Path, cases: list[str]) -> None:
    group = ProcessGroup()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from vlatrack.training.torch_process_group import TorchProcessGroup

        group = TorchProcessGroup.join()
    found = {case: outcome(set(case.split(",")), group, CheckpointStore(folder / case)) for case in cases}
    if group.is_main_process:
        (folder / f"{group.world_size}.json").write_text(json.dumps(found))
    if group.world_size > 1:
        group.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
