"""The arithmetic of a training step, and with it the model FLOPs utilisation (MFU) of a GPU.

    MFU = floating-point operations of the steps / (their time x the GPU's operations per second in dense bf16)

Counted are the matrix products that the loss and its gradient need, a multiplication and an addition each. For a matrix
with P numbers and n inputs these are 2 P n in the forward pass and as many for the gradient of the inputs and, if it is
trained, for its own: 6 P n. Attention over s positions at width D takes 4 s D for each of them in the forward pass, and
twice that in the backward pass. Inputs are

- of a decoder layer, the tokens of the batch without padding; attention is counted as over rows of equal length, and
  not halved for what the mask hides;
- of the output layer, the supervised positions;
- of the ActionHead, the prompts of the rows with actions and its queries; of its final layer, the queries, for which
  the prompts are only keys and values; of its readout, the steps of their chunks.

Not counted are padding, what is recomputed to save memory, and all that is no matrix product. Runs in fp32 or fp8 are
compared with bf16 as well, so that they can be compared with each other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from vlatrack.models.backbones.four_bits import four_bit_layers
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch


@dataclass(frozen=True)
class Matrices:
    """The sizes of some weight matrices, summed up."""

    numbers: int = 0
    trained: int = 0  # numbers of those that are trained
    sides: int = 0  # inputs plus outputs

    @classmethod
    def of(cls, modules: Iterable[nn.Module]) -> "Matrices":
        """Of all matrices in these modules; the weights of a norm over heads are none, though they have two axes."""
        modules = list(modules)
        parts = [part for module in modules for part in module.modules() if "Norm" not in type(part).__name__]
        weights = [weight for part in parts for weight in part.parameters(recurse=False) if weight.dim() == 2]
        packed = [layer for module in modules for layer in four_bit_layers(module)]
        return cls(
            sum(weight.numel() for weight in weights) + sum(layer.in_features * layer.out_features for layer in packed),
            sum(weight.numel() for weight in weights if weight.requires_grad),
            sum(sum(weight.shape) for weight in weights)
            + sum(layer.in_features + layer.out_features for layer in packed),
        )

    @property
    def flops(self) -> int:
        """Operations of the forward and backward pass for each input."""
        return 4 * self.numbers + 2 * self.trained


@dataclass(frozen=True)
class PolicySizes:
    """What the arithmetic of a policy depends on."""

    blocks: Matrices
    output_layer: Matrices
    encoder: Matrices  # with the projection before it, without its final layer
    final_layer: Matrices
    keys_and_values: Matrices  # of the final layer
    readout: Matrices
    layers: int
    width: int
    encoder_layers: int
    encoder_width: int
    queries: int

    @classmethod
    def of(cls, policy: VlaPolicy) -> "PolicySizes":
        backbone, head, output = policy.backbone, policy.action_head, policy.backbone.output_layer
        numbers, width = output.numel(), head.projection.out_features
        *layers, final = head.encoder.layers
        keys_and_values = 2 * width * width
        return cls(
            blocks=Matrices.of(backbone.blocks),
            output_layer=Matrices(numbers, numbers if output.requires_grad else 0, sum(output.shape)),
            encoder=Matrices.of([head.projection, *layers]),
            final_layer=Matrices.of([final]),
            keys_and_values=Matrices(
                keys_and_values, keys_and_values if final.self_attn.in_proj_weight.requires_grad else 0
            ),
            readout=Matrices.of([head.readout]),
            layers=len(backbone.blocks),
            width=backbone.width,
            encoder_layers=len(head.encoder.layers),
            encoder_width=width,
            queries=len(head.queries),
        )


def batch_flops(sizes: PolicySizes, batch: Batch) -> float:
    """Operations of the forward and backward pass of a batch, as this module's docstring counts; 0 if it is idle."""
    if batch.is_idle:
        return 0.0
    rows = len(batch.action_rows)
    positions = batch.longest_prompt + sizes.queries
    attended = ((sizes.encoder_layers - 1) * positions + sizes.queries) * positions
    return (
        sizes.blocks.flops * batch.tokens
        + 12 * sizes.layers * sizes.width * batch.tokens * (batch.tokens / batch.rows)
        + sizes.output_layer.flops * len(batch.targets)
        + rows * sizes.encoder.flops * positions
        + rows * (sizes.final_layer.flops * sizes.queries + sizes.keys_and_values.flops * batch.longest_prompt)
        + rows * 12 * sizes.encoder_width * attended
        + rows * sizes.readout.flops * batch.horizon
    )


def step_flops(policy: VlaPolicy) -> Callable[[Batch], float]:
    """The function that counts a batch's operations for this policy, see ``batch_flops``."""
    sizes = PolicySizes.of(policy)
    return lambda batch: batch_flops(sizes, batch)
