"""One of two ranks: takes a step of an experiment's policy, and writes the peaks that torch's tracker saw as JSON.

Arguments: a file, then changes to the toy experiment. The weights are random, the batch is that of the prediction.
"""

import json
import sys
from dataclasses import astuple
from pathlib import Path

import torch
from program import TOY

from vlatrack.bench.memory import Gpus, step_of
from vlatrack.models.losses.token_losses import logits_at_once_as_on
from vlatrack.spec.load import load_spec
from vlatrack.training.distributed import distribute, process_mesh
from vlatrack.training.memory import peaks_of_step, used_optimizer
from vlatrack.training.torch_process_group import TorchProcessGroup


def main() -> None:
    file, *words = sys.argv[1:]
    group = TorchProcessGroup.join()
    step = step_of(load_spec(TOY, words), Gpus(group.world_size))
    policy = step.build().train()
    offload = step.settings.offloads
    mesh = process_mesh(step.settings.shape, torch.device("cpu"), offloads=offload)
    distribute(policy, mesh, offload=offload)
    optimizer = used_optimizer(policy, step.settings)
    optimizer.zero_grad(set_to_none=True)
    with logits_at_once_as_on("cuda"):  # as the prediction does
        peaks, _ = peaks_of_step(policy, optimizer, step.batch, step.settings)
    if group.is_main_process:
        Path(file).write_text(json.dumps(max(sum(astuple(use)) for use in peaks.values())))
    group.leave()


if __name__ == "__main__":
    main()
