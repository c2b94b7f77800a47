"""The policy: a batch of token rows in, predictions and the documented sums out."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.base import Backbone
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.sums import LossSums, LossWeights, label_actions, token_sums
from vlatrack.models.losses.token_losses import token_losses
from vlatrack.tokens.batch import Batch
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.layout import TokenLayout


@dataclass(frozen=True)
class PolicyOutput:
    """What one forward pass yields."""

    sums: LossSums
    actions: Tensor | None  # [R, H, A] the head's prediction, None for a batch without action rows


class VlaPolicy(nn.Module):
    """Backbone and ActionHead under one forward pass."""

    centres: Tensor

    def __init__(
        self,
        backbone: Backbone,
        action_head: ActionHead,
        *,
        layout: TokenLayout,
        bins: Bins,
        weights: LossWeights,
        ct_target: Literal["tokens", "raw"] = "tokens",
    ) -> None:
        super().__init__()
        self.backbone, self.action_head = backbone, action_head
        self.layout, self.weights, self.ct_target = layout, weights, ct_target
        self.register_buffer("centres", torch.from_numpy(bins.centres).float(), persistent=False)

    def forward(self, batch: Batch) -> PolicyOutput:
        """Hidden states once; logits only where a label asks for them; the head on rows with actions."""
        hidden = self.backbone(batch.input_ids, attention_mask(batch.input_ids, self.layout))
        supervised = hidden.flatten(0, 1)[batch.supervised]
        head = self.action_head
        sums = token_sums(
            token_losses(supervised, self.backbone.output_layer, batch.targets),
            batch,
            weights=self.weights,
            layout=self.layout,
            centres=self.centres,
            chunk=(head.time_horizon, head.action_dim),
        )
        actions, error = self._continuous(hidden, batch)
        rows = error.new_full((), len(batch.action_rows))
        return PolicyOutput(LossSums(**sums, action_rows=rows, head_error=error), actions)

    def _head_actions(self, hidden: Tensor, batch: Batch) -> Tensor:
        prompts = hidden[batch.action_rows, : batch.longest_prompt]
        actions: Tensor = self.action_head(prompts, batch.prompt_lengths)
        return actions.float()

    def _continuous(self, hidden: Tensor, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The head's prediction and, per step and dimension, its summed L1 error [H, A]."""
        if len(batch.action_rows) == 0:
            return None, self.centres.new_zeros(self.action_head.time_horizon, self.action_head.action_dim)
        actions = self._head_actions(hidden, batch)
        if self.ct_target == "raw":
            assert batch.actions is not None, "ct_target: raw needs the actions before binning in the batch"
            target = batch.actions
        else:
            target = label_actions(batch, self.layout, self.centres)
        return actions, (actions - target).abs().sum(0)
