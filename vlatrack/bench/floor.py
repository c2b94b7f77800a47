"""The least time in which a chip could take a training step.

    floor = floating-point operations / operations per second + bytes / memory bandwidth

The operations are those of `vlatrack.training.flops`, at the chip's rate in dense bf16. The bytes are those that code
with all operations fused into the matrix products still reads or writes:

- of each matrix product, its input and its result in the forward pass; in the backward pass the gradient of the result
  twice, the input, and the gradient of the input: three times inputs and results in all, in the product's precision;
- the weights, and their copy in half precision where they are kept in float32;
- the gradients, written by the backward pass, read for their norm and again by the optimiser;
- weights and optimiser states, read and written by the optimiser.

It is a yardstick, not a bound: what overlaps may be faster, and no kernel reaches its peak. What several processes send
each other is not in it.
"""

from dataclasses import dataclass

from vlatrack.tokens.batch import Batch
from vlatrack.training.chips import Chip
from vlatrack.training.flops import PolicySizes, batch_flops


@dataclass(frozen=True)
class Floor:
    """Seconds of a step at least."""

    arithmetic_s: float
    memory_s: float
    source: str  # where the chip's limits come from

    @property
    def total_s(self) -> float:
        return self.arithmetic_s + self.memory_s


def step_floor(
    sizes: PolicySizes,
    batch: Batch,
    chip: Chip,
    *,
    processes: int,
    half_precision: bool,
    copied: int,
    trained: int,
    states: int,
) -> Floor:
    """The floor of a step on ``batch``, which so many processes share.

    Args:
        half_precision: whether matrices are multiplied in two bytes a number, not four.
        copied: bytes of the weights that one process keeps in float32 and copies in half precision.
        trained: bytes of the weights that one process trains, and so of their gradients.
        states: bytes of its optimiser states.
    """
    activations = 3 * (2 if half_precision else 4) * _passing(sizes, batch) / processes
    moved = activations + 1.5 * copied + 3 * trained + 2 * trained + 2 * states
    return Floor(batch_flops(sizes, batch) / processes / chip.flops, moved / chip.bytes_per_s, chip.source)


def _passing(sizes: PolicySizes, batch: Batch) -> int:
    """Numbers that go into matrix products, and come out of them."""
    rows = len(batch.action_rows)
    return (
        sizes.blocks.sides * batch.tokens
        + sizes.output_layer.sides * len(batch.targets)
        + sizes.encoder.sides * rows * (batch.longest_prompt + sizes.queries)
        + sizes.final_layer.sides * rows * sizes.queries
        + sizes.readout.sides * rows * batch.horizon
    )
