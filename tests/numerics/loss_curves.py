"""The recipe of the stored loss curves: how a policy of each preset learns in its first steps.

    python tests/numerics/loss_curves.py

writes curves/<preset>.json anew. Do so in a commit that means to change the numbers, and say why in its message.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))  # as pytest does

from accelerate import Accelerator  # noqa: E402
from tiny_policy import BINS, DIMS, HORIZON, LAYOUT, vla_row, world_model_row  # noqa: E402

from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory, Preset  # noqa: E402
from vlatrack.models.heads.action_head import ActionHead  # noqa: E402
from vlatrack.models.losses.terms import documented_terms  # noqa: E402
from vlatrack.models.policy import VlaPolicy  # noqa: E402
from vlatrack.tokens.batch import Batch, collate  # noqa: E402
from vlatrack.training.optimisation import train_step  # noqa: E402
from vlatrack.training.optimizers import adamw  # noqa: E402
from vlatrack.training.process_group import ProcessGroup  # noqa: E402

CURVES = HERE / "curves"
STEPS: dict[Preset, int] = {"tiny": 30, "small": 10}
LEARNING_RATE: dict[Preset, float] = {"tiny": 2e-3, "small": 2e-4}

Curve = dict[str, list[float]]


def make_policy(preset: Preset) -> VlaPolicy:
    torch.manual_seed(0)
    backbone = ChameleonFactory(preset, {}, None, None, 0.0, 256).open().build()
    head = ActionHead(
        backbone_width=backbone.width, time_horizon=HORIZON, action_dim=DIMS, reduced_width=16, heads=2, dropout=0
    )
    return VlaPolicy(backbone, head, layout=LAYOUT, bins=BINS, losses=documented_terms(LAYOUT, (HORIZON, DIMS)))


def batch_of(step: int) -> Batch:
    """The batches repeat, so that there is something to learn."""
    generator = np.random.default_rng(step % 3)
    return collate([*(vla_row(generator, 3 + row) for row in range(4)), world_model_row(generator)], LAYOUT)


def loss_curve(preset: Preset) -> Curve:
    """Each documented loss and the gradient norm, by step."""
    policy, accelerator = make_policy(preset).train(), Accelerator(cpu=True)
    optimizer = adamw(policy.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    curve: Curve = {}
    for step in range(STEPS[preset]):
        batch = batch_of(step)
        result = train_step(
            policy,
            optimizer,
            [batch],
            policy.loss_counts(batch),
            accelerator=accelerator,
            group=ProcessGroup(),
            lr=LEARNING_RATE[preset],
            clip_grad=1.0,
            trains_head=True,
            step=step,
        )
        values = policy.metric_values(result.states) | {"grad_norm": result.grad_norm.item()}
        for name in ("loss", "closs", "loss_ct", "z_loss", "grad_norm"):
            curve.setdefault(name, []).append(values[name])
    return curve


if __name__ == "__main__":
    CURVES.mkdir(exist_ok=True)
    for preset in STEPS:
        content = {"torch": torch.__version__, "curve": loss_curve(preset)}
        (CURVES / f"{preset}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"{preset}: loss {content['curve']['loss'][0]:.4f} -> {content['curve']['loss'][-1]:.4f}")
