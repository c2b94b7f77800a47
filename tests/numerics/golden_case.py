"""A reference case rebuilt with our policy: weights by recipe, imported under the reference's names."""

import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.backbones.chameleon.pretrained import CHAMELEON_WEIGHTS
from vlatrack.models.backbones.pretrained import copy_weights
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.sums import Losses, LossWeights, documented_losses
from vlatrack.models.policy import PolicyOutput, VlaPolicy
from vlatrack.tokens.batch import Batch, index_rows
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.layout import TokenLayout

LAYOUT = TokenLayout()


def recipe_weight(name: str, shape: list[int]) -> torch.Tensor:
    """The golden README's recipe: seeded by the reference's parameter name."""
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    is_norm = ("norm" in name and name.endswith("weight")) or name.endswith(".ffn.0.weight")
    noise = generator.standard_normal(size=shape) * (0.1 if is_norm else 0.08)
    return torch.from_numpy((noise + is_norm).astype(np.float32))


@dataclass
class GoldenCase:
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @classmethod
    def read(cls, folder: Path, name: str) -> "GoldenCase":
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        return cls(json.loads((folder / f"{name}.json").read_text()), arrays)

    @cached_property
    def policy(self) -> VlaPolicy:
        config, head, values = self.values["config"], self.values["action_head"], self.values
        policy = VlaPolicy(
            ChameleonBackbone(backbone_config(config)),
            ActionHead(
                backbone_width=config["hidden_size"],
                time_horizon=config["time_horizon"],
                action_dim=config["action_dim"],
                reduced_width=head["reduced_size"],
                encoder_layers=head["encoder_layers"],
                heads=head["heads"],
                mask_padding=False,  # the reference attends to the zero vectors it pads prompts with
            ),
            layout=LAYOUT,
            bins=Bins(256),
            weights=LossWeights(values["loss_ct_weights"], values["z_loss_weight"], values["image_token_weight"]),
        )
        shapes = values["parameter_shapes"]
        weights = ((name, recipe_weight(name, shape)) for name, shape in shapes.items())
        assert copy_weights(policy, weights, CHAMELEON_WEIGHTS)
        return policy.eval()

    @cached_property
    def batch(self) -> Batch:
        return index_rows(self.arrays["input_ids"], self.arrays["labels"], LAYOUT)

    @cached_property
    def output(self) -> PolicyOutput:
        return self.policy(self.batch)

    @cached_property
    def losses(self) -> Losses:
        return documented_losses(self.output.sums, self.policy.weights)
