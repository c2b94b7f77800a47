"""One of several ranks: trains a small policy for twelve steps in each of the ways that it is told, and writes loss and
gradient norm of each step as JSON.

Arguments: a file, then the ways, as `float64,shard=2,none`. Without torchrun it is one process alone.
"""

import json
import os
import sys
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from tiny_policy import BINS, DIMS, GEOMETRY, HORIZON, LAYOUT, vla_row, world_model_row

from vlatrack.models.backbones.activations import Keep, keep_activations
from vlatrack.models.backbones.adapter import Adapter, add_adapter
from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.freezing import freeze
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.prompts import TokenSequence
from vlatrack.training.compilation import compile_blocks
from vlatrack.training.distributed import distribute, parallel_shape, process_mesh
from vlatrack.training.gradient_share import gradient_shares
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.torch_process_group import TorchProcessGroup, process_group_of_one

STEPS, MICRO_BATCH = 12, 2


def make_policy(ways: set[str]) -> VlaPolicy:
    torch.manual_seed(0)
    backbone = ChameleonBackbone(backbone_config(GEOMETRY))
    head = ActionHead(backbone_width=32, time_horizon=HORIZON, action_dim=DIMS, reduced_width=16, heads=2, dropout=0)
    policy = VlaPolicy(backbone, head, layout=LAYOUT, bins=BINS, losses=documented_terms(LAYOUT, (HORIZON, DIMS)))
    for keep in ways & {"all_matmuls", "every_second", "none"}:
        keep_activations(backbone.blocks, cast(Keep, keep))
    for kind in ways & {"lora", "dora"}:
        settings = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ("q_proj", "down_proj"), "base": "fp32"}
        add_adapter(backbone, Adapter(kind=kind, **settings))
    if "partly" in ways:
        freeze(policy, ["*.layers.0.*", "*.embed_tokens.*", "action_head.queries", "*.q_proj.*"])
    if "frozen" in ways:
        backbone.requires_grad_(False)
    return policy.to(torch.float64 if "float64" in ways else torch.float32)


def rows_of_step(step: int) -> list[TokenSequence]:
    """Five rows, so that ranks have different numbers of them. In each third step no row has actions, in each third one
    the first alone has; the last step has a single row."""
    generator = np.random.default_rng(step)
    if step == STEPS - 1:
        return [vla_row(generator, 4)]
    with_actions = (range(5), range(1), ())[step % 3]
    return [vla_row(generator, 3 + 2 * row) if row in with_actions else world_model_row(generator) for row in range(5)]


def micro_batches(rows: list[TokenSequence], group: ProcessGroup) -> list[Batch]:
    own = group.shard(rows)
    return [
        collate(own[start : start + MICRO_BATCH], LAYOUT)
        for start in range(0, group.largest_shard(len(rows)), MICRO_BATCH)
    ]


def train(ways: set[str], group: ProcessGroup) -> list[tuple[float, float]]:
    accelerator = Accelerator(cpu=True)
    policy = make_policy(ways).train()
    chosen = {name: int(value) for name, _, value in (way.partition("=") for way in ways) if value}
    shape = parallel_shape(
        group.world_size, group.per_machine, shard=chosen.get("shard"), replicate=chosen.get("replicate")
    )
    offload = "offloaded" in ways
    distribute(policy, process_mesh(shape, torch.device("cpu"), offloads=offload), offload=offload)
    if "compiled" in ways:
        compile_blocks(policy, backend="eager")
    # At 1e-2, single precision by itself is further than 1e-6 from double precision after twelve steps.
    lr = 1e-2 if "float64" in ways else 1e-3
    optimizer = adamw(policy.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    steps = []
    for step in range(STEPS):
        rows = rows_of_step(step)
        batches = micro_batches(rows, group)
        whole = collate(rows, LAYOUT)
        counts = policy.loss_counts(whole)
        if "measured" in ways:
            gradient_shares(policy, batches[0], counts, accelerator)
        result = train_step(
            policy,
            optimizer,
            batches,
            counts,
            accelerator=accelerator,
            group=group,
            lr=lr,
            clip_grad=1.0,
            trains_head=len(whole.action_rows) > 0,
        )
        (loss,) = group.sum([result.loss.item()])
        steps.append((loss, result.grad_norm.item()))
    return steps


def main(file: Path, trainings: list[str]) -> None:
    group = ProcessGroup()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        group = TorchProcessGroup.join()
    with process_group_of_one(needed=group.world_size == 1 and "offloaded" in ",".join(trainings)):
        results = {ways: train(set(ways.split(",")), group) for ways in trainings}
    if group.is_main_process:
        file.write_text(json.dumps(results))
    if group.world_size > 1:
        group.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
