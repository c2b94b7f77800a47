"""The policy: from a batch of token rows to loss totals, metric states and predicted actions.

Legend: R rows with an action chunk, H steps, A numbers of an action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from vlatrack.errors import BackboneError
from vlatrack.metrics.declarations import split_metrics
from vlatrack.metrics.metric import metric_values
from vlatrack.metrics.states import MetricStates
from vlatrack.models.attention import attention_mask, block_mask
from vlatrack.models.backbones.base import Backbone
from vlatrack.models.calibration import calibration_states
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.base import LossInputs, LossTerm, checked_count, checked_total
from vlatrack.models.losses.token_losses import token_losses
from vlatrack.models.token_metrics import image_code_states, token_metric_states
from vlatrack.tokens.batch import IMAGE_SLOTS, Batch
from vlatrack.tokens.bins import Bins, decode_ids
from vlatrack.tokens.layout import TokenLayout


@dataclass(frozen=True)
class PolicyOutput:
    """The result of one forward pass."""

    totals: dict[str, Tensor]  # by loss term: scalar sums over the batch, differentiable
    states: MetricStates
    actions: Tensor | None  # [R, H, A], predicted by the head; None for a batch without action rows


# FSDP2 looks for tensors in what a forward pass returns, to be called when the backward pass begins.
torch.export.register_dataclass(PolicyOutput)


class VlaPolicy(nn.Module):
    """Backbone and ActionHead in one forward pass, with the loss terms that train them."""

    centres: Tensor

    def __init__(
        self,
        backbone: Backbone,
        action_head: ActionHead,
        *,
        layout: TokenLayout,
        bins: Bins,
        losses: Sequence[LossTerm],
    ) -> None:
        super().__init__()
        self.backbone, self.action_head = backbone, action_head
        self.layout, self.losses = layout, tuple(losses)
        self.register_buffer("centres", torch.from_numpy(bins.centres).float(), persistent=False)
        self._mask_of: Callable[[Tensor, TokenLayout], Tensor | BlockMask] = attention_mask
        self._metrics = tuple(
            split_metrics(
                horizon=action_head.time_horizon,
                action_dim=action_head.action_dim,
                image_slots=IMAGE_SLOTS,
                losses={term.metric: term.weight for term in self.losses},
            )
        )

    def use_flex_attention(self) -> None:
        """From now on attend with FlexAttention. It needs a GPU for the backward pass.

        Raises:
            BackboneError: the backbone has none.
        """
        self.backbone.use_flex_attention()
        self._mask_of = block_mask

    def forward(self, batch: Batch, *, before_metrics: Callable[[], None] = lambda: None) -> PolicyOutput:
        """Run the backbone once, compute logits at supervised positions only, and the head on rows with actions.

        Args:
            before_metrics: called when all that trains is computed, and only the token metrics are left.

        Raises:
            BackboneError: the backbone does not return hidden states of each position.
            LossError: a loss term does not return what it should.
        """
        hidden = self.backbone(batch.input_ids, self._mask_of(batch.input_ids, self.layout))
        expected = (*batch.input_ids.shape, self.backbone.width)
        if hidden.shape != expected:
            raise BackboneError(
                f"backbone {type(self.backbone).__name__}: forward() returned {list(hidden.shape)}; "
                f"expected hidden states of {list(expected)}, one for each position"
            )
        supervised = hidden.flatten(0, 1)[batch.supervised]
        tokens = token_losses(supervised, self.backbone.output_layer, batch.targets)
        has_actions = len(batch.action_rows) > 0
        inputs = LossInputs(
            batch=batch,
            nll=tokens.nll,
            logsumexp=tokens.logsumexp,
            predicted=tokens.predicted,
            hidden=hidden,
            actions=self._head_actions(hidden, batch) if has_actions else None,
            label_actions=self.label_actions(batch) if has_actions else None,
        )
        totals, states = self._loss_totals(inputs)
        before_metrics()
        states = states + token_metric_states(inputs, self.layout, self.centres)
        if has_actions and not self.training:
            states = states + self._calibration(supervised.detach(), batch)
        if len(batch.image_index) and not self.training:
            states = states + image_code_states(inputs, self.layout)
        return PolicyOutput(totals, states, inputs.actions)

    def loss_counts(self, batch: Batch) -> dict[str, float]:
        """The divisor of each loss term's total, known on the host before any forward pass.

        Counts are summed over the micro batches of an optimiser step and over ranks.

        Raises:
            LossError: a term returns something else than a count.
        """
        return {term.name: checked_count(term, batch) for term in self.losses}

    def loss(self, output: PolicyOutput, counts: Mapping[str, float]) -> Tensor:
        """The sum of weight * total / count over the loss terms, without those whose count is 0.

        With the counts of a whole optimiser step, the gradients of its micro batches add up to that of one large batch.
        """
        # Where no term has a count the totals are 0; their sum still gives backward() a graph.
        first, *others = self.weighted_terms(output, counts).values() or output.totals.values()
        return sum(others, first)

    def weighted_terms(self, output: PolicyOutput, counts: Mapping[str, float]) -> dict[str, Tensor]:
        """weight * total / count of each loss term whose count is not 0: what `loss` is the sum of."""
        counted = [term for term in self.losses if counts[term.name] > 0]
        return {term.name: term.weight * (output.totals[term.name] / counts[term.name]) for term in counted}

    def metric_values(self, states: MetricStates) -> dict[str, float]:
        """The metrics of a window, by name without the prefix of the split. Synchronises with the device once.

        A loss term without a count is 0, or NaN if no term has one, as in a window whose steps were all skipped. Any
        other metric without one (action errors of a window without action rows, accuracies of image slots that did not
        occur) is left out.
        """
        return metric_values(self._metrics, states)

    def _loss_totals(self, inputs: LossInputs) -> tuple[dict[str, Tensor], MetricStates]:
        """The scalar total of each loss term, and the states of those that have a count."""
        totals, states = {}, {}
        # 0 even if nll is NaN, with a graph: whatever rows a rank has, its backward pass reaches backbone and head.
        trained = (parameter for parameter in self.action_head.parameters() if parameter.requires_grad)
        nothing = inputs.nll[:0].sum() + next(trained, self.action_head.queries)[:0].sum().float()
        for term in self.losses:
            if count := checked_count(term, inputs.batch):
                total = checked_total(term, inputs)
                totals[term.name] = total.sum() + nothing
                states[term.name] = total, count / total.numel()
            else:
                totals[term.name] = nothing
        return totals, MetricStates.of(states)

    def _head_actions(self, hidden: Tensor, batch: Batch) -> Tensor:
        prompts = hidden[batch.action_rows, : batch.longest_prompt]
        actions: Tensor = self.action_head(prompts, batch.prompt_lengths)
        return actions.float().clone()  # a view, as linear layers return it, could lose the hook that FSDP2 sets on it

    def _calibration(self, supervised: Tensor, batch: Batch) -> MetricStates:
        first = self.layout.action_start + 2
        bins = self.backbone.output_layer[first : first + len(self.centres) + 1].detach()
        return calibration_states(supervised[batch.action_index], bins, batch.targets[batch.action_index] - first)

    def label_actions(self, batch: Batch) -> Tensor:
        """The actions [R, H, A] in [-1, 1] that the label tokens decode to."""
        decoded: Tensor = decode_ids(batch.targets[batch.action_index], self.centres, start=self.layout.action_start)
        return decoded
