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
from vlatrack.models.losses.terms import documented_terms
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
            losses=documented_terms(
                LAYOUT,
                (config["time_horizon"], config["action_dim"]),
                loss_ct_weights=values["loss_ct_weights"],
                z_loss_weight=values["z_loss_weight"],
                image_token_weight=values["image_token_weight"],
            ),
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

    @property
    def has_action_rows(self) -> bool:
        return len(self.batch.action_rows) > 0

    @property
    def l1_by_step(self) -> list[float]:
        return self._by_step("l1_by_step")

    @property
    def acc_by_step(self) -> list[float]:
        return self._by_step("acc_by_step")

    def _by_step(self, key: str) -> list[float]:
        """One value a chunk step; none where no row has actions, whatever the file holds there."""
        return self.values[key] if self.has_action_rows else []

    @property
    def predicted_actions(self) -> torch.Tensor | None:
        """The head's output [R * H, A].

        None without action rows: the reference runs its head once all the same, on a dummy row that counts nowhere, and
        the file may hold that chunk.
        """
        return torch.from_numpy(self.arrays["predicted_actions"]) if self.has_action_rows else None

    @cached_property
    def loss(self) -> torch.Tensor:
        """What is optimised."""
        return self.policy.loss(self.output, self.policy.loss_counts(self.batch))

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The documented metrics of the case as one window."""
        return self.policy.metric_values(self.output.states)
