"""Training and evaluation in an experiment's YAML: optimiser, memory, processes, checkpoints."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from vlatrack.spec.base import Model, Once, Probability

_LARGEST_BF16_BETA = 1 - 2**-8
"""An average with a larger beta moves by less than half the distance between two bf16 numbers."""


MOST_PROFILED_STEPS = 50
"""A trace takes megabytes for each step, and viewers have their limits."""


def _one_as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class ParameterGroup(Model):
    """Parameters that are trained in another way than the others."""

    match: Annotated[
        tuple[str, ...],
        BeforeValidator(_one_as_list, json_schema_input_type=str | list[str]),
        Field(min_length=1, description="names of parameters, or patterns such as `action_head.*`"),
        Once,
    ]
    lr: PositiveFloat | None = Field(
        None, description="after warm-up; the schedule scales it as optim.lr; null: optim.lr"
    )
    weight_decay: NonNegativeFloat | None = Field(None, description="null: optim.weight_decay")


class OptimSpec(Model):
    """The optimiser and its schedule."""

    kind: Literal["adamw", "muon"] = Field(
        "adamw",
        description="muon: matrices of decoder layers by Muon, with the lr and decay of AdamW, which trains the rest",
    )
    lr: PositiveFloat = Field(5.0e-6, description="learning rate after warm-up")
    min_lr: NonNegativeFloat = Field(0.0, description="where cosine and wsd end")
    weight_decay: NonNegativeFloat = Field(0.15, description="decoupled weight decay")
    betas: tuple[Probability, Probability] = Field((0.9, 0.95), description="decay of the two moment averages")
    eps: PositiveFloat = Field(1.0e-8, description="added to the denominator of the step")
    clip_grad: PositiveFloat | None = Field(4.0, description="largest gradient norm; null: no clipping")
    groups: tuple[ParameterGroup, ...] = Field(
        (), description="parameters with their own lr and decay; the first group that matches a name has it"
    )
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        "cosine", description="course of lr after warm-up; wsd: constant, then a decay at the end"
    )
    warmup_epochs: NonNegativeFloat | None = Field(0.01, description="linear warm-up, in (fractions of) epochs")
    warmup_steps: NonNegativeInt | None = Field(None, description="linear warm-up, in steps instead of epochs")
    decay_epochs: PositiveFloat | None = Field(
        None, description="decay of wsd, in (fractions of) epochs; null without decay_steps: the last fifth"
    )
    decay_steps: PositiveInt | None = Field(None, description="decay of wsd, in steps instead of epochs")
    decay_shape: Literal["sqrt", "linear"] = Field(
        "sqrt", description="of wsd: lr falls as 1 - sqrt(progress), fast at first (Hägele et al. 2024), or linearly"
    )

    @model_validator(mode="before")
    @classmethod
    def _steps_replace_the_default_epochs(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("warmup_steps") is not None:
            return {"warmup_epochs": None, **values}
        return values

    @model_validator(mode="after")
    def _lengths_have_one_unit(self) -> Self:
        if self.warmup_epochs is not None and self.warmup_steps is not None:
            raise ValueError("warmup_epochs or warmup_steps, not both; set one of them to null")
        if self.warmup_epochs is None and self.warmup_steps is None:
            raise ValueError("warmup_epochs and warmup_steps are both null; for no warm-up set warmup_epochs to 0")
        decays = [self.decay_epochs, self.decay_steps]
        if None not in decays:
            raise ValueError("decay_epochs or decay_steps, not both; set one of them to null")
        if decays != [None, None] and self.schedule != "wsd":
            raise ValueError(f"decay_epochs and decay_steps belong to schedule: wsd, not to {self.schedule}")
        return self


class CheckpointSpec(Model):
    """When checkpoints are written and how many are kept."""

    every_epochs: PositiveInt = Field(1, description="every this many epochs")
    every_steps: PositiveInt | None = Field(None, description="also every this many optimiser steps; null: never")
    keep_last: PositiveInt = Field(2, description="number of checkpoints to keep; the best one is always kept")
    asynchronous: bool = Field(
        True, description="write while the training goes on, from a copy of weights and optimiser in host memory"
    )
    best_metric: str = Field(
        "val_ind_loss_ct",
        description="decides which checkpoint is best: the lowest loss or error, the highest accuracy",
    )


class ParallelSpec(Model):
    """How several processes hold the policy: `shard` times `replicate` of them, with FSDP2."""

    shard: PositiveInt | None = Field(
        None, description="processes over which each copy of the policy is sharded; null: those of one machine"
    )
    replicate: PositiveInt | None = Field(None, description="copies of the policy; null: as many as there can be")


class MemorySpec(Model):
    """What a training keeps in the memory of a GPU, and in which form."""

    parameters: Literal["fp32", "bf16"] | None = Field(
        None,
        description="of the trained parameters and their gradients; null: bf16 for the 7b preset without an adapter, "
        "else fp32",
    )
    rounding: Literal["stochastic", "kahan", "nearest"] | None = Field(
        None,
        description="of bf16 parameters: up or down by chance, in proportion; or kahan: what rounding cuts off is kept "
        "for the next step, 2 bytes a parameter; null: stochastic. nearest is refused: it loses small updates",
    )
    optimizer_states: Literal["fp32", "bf16", "8bit"] | None = Field(
        None, description="of AdamW's two averages; 8bit: blockwise, for one process; null: as the parameters"
    )
    gradients: Literal["fp32"] | None = Field(
        None,
        description="fp32: of bf16 parameters, too, where they are summed over micro batches, for 2 bytes more each; "
        "null: as the parameters",
    )
    keep: Literal["all", "all_matmuls", "every_second", "none"] = Field(
        "all",
        description="activations kept for the backward pass; others are computed again: less memory, more time, same "
        "numbers; all_matmuls: results of attention and matrix products; every_second: of attention and every second "
        "product; none: the input of each layer",
    )
    offload: Literal["none", "activations", "parameters"] = Field(
        "none",
        description="activations: what is kept waits in the host's memory for the backward pass, same numbers; best "
        "with keep none; parameters: parameters, gradients and optimiser states stay in the host's memory, where the "
        "optimiser takes its step, and each layer comes to the GPU when it is its turn; not measured on a GPU yet",
    )

    @model_validator(mode="after")
    def _kept_activations_can_be_moved(self) -> Self:
        if self.offload == "activations" and self.keep not in ("all", "none"):
            raise ValueError(f"offload: activations needs keep: all or none; {self.keep} stays on the GPU")
        return self


@dataclass(frozen=True)
class Storage:
    """The settings of `train.memory`, with what null stands for filled in."""

    parameters: Literal["fp32", "bf16"]
    rounding: Literal["stochastic", "kahan"] | None  # None: fp32 parameters, which need none
    optimizer_states: Literal["fp32", "bf16", "8bit"]


class EmaSpec(Model):
    """An average of the weights over the steps, in fp32; it is what is evaluated, saved and exported."""

    decay: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.999, description="weight of the old average at each step; less in early steps: (1 + step) / (10 + step)"
    )


class EarlyStoppingSpec(Model):
    """The end of a training that does not get better any more."""

    metric: str | None = Field(None, description="what has to get better; null: train.checkpoint.best_metric")
    patience: PositiveInt = Field(
        description="values in a row that are not better than the best before; there is one for each epoch, or for "
        "each evaluation in a simulator"
    )


class ProfileSpec(Model):
    """Optimiser steps of which a torch profiler trace is written, by the first process."""

    steps: tuple[PositiveInt, PositiveInt] = Field(description="the first and the last step, counted from 1")

    @model_validator(mode="after")
    def _first_comes_first(self) -> Self:
        first, last = self.steps
        if not first <= last < first + MOST_PROFILED_STEPS:
            raise ValueError(
                f"steps {first} to {last}: give the first and the last of at most {MOST_PROFILED_STEPS} steps"
            )
        return self


class TrainSpec(Model):
    """The training loop."""

    epochs: PositiveInt = Field(40, description="passes over the training samples")
    max_steps: PositiveInt | None = Field(
        None, description="stop after this many optimiser steps; the learning rate schedule still spans `epochs`"
    )
    batch_size: PositiveInt = Field(8, description="samples in one optimiser step, over all processes")
    micro_batch: PositiveInt | None = Field(
        None,
        description="most samples in one forward pass of one process; gradients accumulate; null: all at once",
    )
    group_by_length: bool = Field(
        True,
        description="deal the rows of a step to micro batches and processes by length: less padding, and the gradient "
        "of the step stays what it is",
    )
    non_finite: Literal["halt", "skip", "rollback"] = Field(
        "halt",
        description="a step whose loss or gradient is not finite is never taken; then end the run as FAILED, go on "
        "without that batch (ten in a row at most), or return to the last checkpoint and go on without it",
    )
    max_rollbacks: PositiveInt = Field(3, description="non_finite: rollback ends the run as FAILED after this many")
    precision: Literal["fp32", "bf16", "fp8"] = Field(
        "bf16",
        description="arithmetic of the forward and backward pass; fp8: of the matrix products of the decoder layers, "
        "the rest in bf16, on GPUs from compute capability 8.9 (Ada, Hopper) on",
    )
    attention: Literal["sdpa", "flex"] = Field(
        "sdpa", description="flex: FlexAttention, which skips what the mask forbids; on a GPU only"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    workers: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="workers that assemble batches, for each process"
    )
    deterministic: bool = Field(
        False, description="on a GPU, only kernels that give the same bits each time; slower, see docs/reproduce.md"
    )
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="compile the decoder layers, in one graph for all, and pad rows to multiples of 64 positions; "
        "auto: on a GPU, if there is a C compiler, and without DoRA",
    )
    memory: MemorySpec = MemorySpec()
    freeze: Annotated[tuple[str, ...], Once] = Field(
        (), description="names of parameters that are not trained, as patterns such as 'backbone.*.embed_tokens.*'"
    )
    grace_s: PositiveFloat = Field(
        25.0, description="seconds that a step and a checkpoint may take after a signal that ends the run"
    )
    parallel: ParallelSpec = ParallelSpec()
    ema: EmaSpec | None = Field(None, description="average the weights over the steps; null: the last weights act")
    early_stopping: EarlyStoppingSpec | None = Field(None, description="null: the training goes on to its last epoch")
    checkpoint: CheckpointSpec = CheckpointSpec()
    profile: ProfileSpec | None = Field(None, description="null: no profiler trace")


class OpenLoopSpec(Model):
    """Losses and errors on recorded demonstrations."""

    every_epochs: PositiveInt = Field(1, description="every this many epochs")
    batch_size: PositiveInt = Field(32, description="samples in one forward pass")
    max_samples: PositiveInt | None = Field(None, description="evaluate on an evenly spread subset of this size")
    world_samples: NonNegativeInt = Field(
        256, description="world-model samples of each split, evenly spread, if the training has such; 0: none"
    )


class DetailsSpec(Model):
    """What `vlatrack evaluate` measures and draws beside the losses, of each split."""

    free_samples: NonNegativeInt = Field(
        256, description="samples whose action tokens are also decoded freely, as when the policy acts; 0: none"
    )
    trajectories: NonNegativeInt = Field(
        3, description="episodes whose predicted actions are drawn beside the recorded ones; 0: none"
    )
    frames: NonNegativeInt = Field(
        64, description="world-model samples whose images are decoded, for PSNR, SSIM and a figure; 0: none"
    )
    generated: NonNegativeInt = Field(
        16, description="of these, those whose images are also generated, with a forward pass for each code; 0: none"
    )


class ClosedLoopSpec(Model):
    """Episodes in a simulator, in a process of its own beside the training."""

    every_epochs: PositiveInt = Field(1, description="the checkpoints of every this many epochs, and the last one")
    evaluation: str = Field(min_length=1, description="the evaluation's YAML file, as for `vlatrack evaluate`")
    overrides: tuple[str, ...] = Field((), description="changes to that file, such as episodes=5")
    workers: Annotated[int, Field(ge=1, le=256)] = Field(1, description="simulators that run at the same time")
    videos: NonNegativeInt = Field(8, description="videos of episodes that are kept, failures first")
    timeout_s: Annotated[float, Field(ge=1)] = Field(
        120.0, description="seconds without an answer after which a simulator is ended"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the policy acts; auto: on the CPU if it is trained there, else on the first GPU"
    )


class EvaluateSpec(Model):
    """Evaluation, while training and afterwards."""

    open_loop: OpenLoopSpec | None = Field(OpenLoopSpec(), description="while training; null: no evaluation")
    details: DetailsSpec = DetailsSpec()
    closed_loop: ClosedLoopSpec | tuple[ClosedLoopSpec, ...] | None = Field(
        None, description="evaluations in simulators, one or a list of them; null: none"
    )

    @property
    def closed_loops(self) -> tuple[ClosedLoopSpec, ...]:
        """All evaluations in simulators."""
        if isinstance(self.closed_loop, ClosedLoopSpec):
            return (self.closed_loop,)
        return self.closed_loop or ()
