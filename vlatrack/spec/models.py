"""The experiment YAML as frozen models; each field states its meaning and range.

Nothing here imports torch, so that a spec is validated in well under a second.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from vlatrack.metrics.schema import MetricSchema

Probability = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="letters, digits, '.', '_' and '-', a letter or digit first",
    ),
]
CustomTarget = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$|^[A-Za-z_][\w.-]*$",
        description="a class as package.module:Class, or the name of an entry point of an installed package",
    ),
]


_LARGEST_BF16_BETA = 1 - 2**-8
"""An average with a larger beta moves by less than half the distance between two bf16 numbers."""


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{value!r} is listed twice; list it once")
    return values


MOST_PROFILED_STEPS = 50
"""A trace takes megabytes for each step, and viewers have their limits."""

Once = AfterValidator(_each_once)
"""For a list without duplicates."""


class Model(BaseModel):
    """Base of every part of a spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# --- model -------------------------------------------------------------------------------------


Options = Annotated[dict[str, str | int | float | bool | None], Field(description="keyword arguments of the class")]
ResidualDropout = Annotated[Probability, Field(description="dropout on both residual branches of each layer")]
MaxSeqLen = Annotated[PositiveInt, Field(description="longest token sequence of one sample")]


class AdapterSpec(Model):
    """Small matrices that are trained beside the frozen linear layers of the backbone; needs `vlatrack[scale]`."""

    kind: Literal["lora", "dora"] = Field(description="dora also trains the length of each layer's weight vectors")
    rank: PositiveInt = Field(16, description="rank of the product that is added to a layer's weight")
    alpha: PositiveFloat = Field(32.0, description="the product is scaled by alpha / rank")
    dropout: Probability = Field(0.0, description="dropout on the input of an adapter")
    targets: Annotated[tuple[str, ...], Field(min_length=1), Once] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="linear layers of each decoder layer that get one",
    )
    base: Literal["fp32", "bf16"] = Field(
        "fp32", description="the frozen weights of the backbone; what is trained, adapters and head, stays fp32"
    )


Adapter = Annotated[
    AdapterSpec | None,
    Field(description="train adapters and the head alone; null: the whole policy. `vlatrack export` merges them"),
]


class ChameleonSpec(Model):
    """The autoregressive backbone, one of transformers' Chameleon models."""

    kind: Literal["chameleon"] = "chameleon"
    init: Literal["scratch", "pretrained"] = Field("scratch", description="random weights, or those of `checkpoint`")
    preset: Literal["tiny", "small", "7b"] | None = Field(None, description="geometry of a model from scratch")
    checkpoint: str | None = Field(
        None, description="folder or hub id: a Hugging Face Chameleon, or a RynnVLA-002 / WorldVLA checkpoint"
    )
    residual_dropout: ResidualDropout = 0.0
    adapter: Adapter = None
    max_seq_len: MaxSeqLen = 4096

    @model_validator(mode="after")
    def _weights_have_one_source(self) -> Self:
        if self.init == "scratch" and (self.preset is None or self.checkpoint is not None):
            raise ValueError("init: scratch needs a preset (tiny, small or 7b) and no checkpoint")
        if self.init == "pretrained" and (self.checkpoint is None or self.preset is not None):
            raise ValueError("init: pretrained needs a checkpoint (folder or hub id) and no preset")
        return self


class CausalLMSizes(Model):
    """Sizes of a decoder from scratch, under transformers' names; null: the preset's."""

    hidden_size: PositiveInt | None = Field(None, description="width of the hidden states")
    intermediate_size: PositiveInt | None = Field(None, description="width inside the MLP of a layer")
    num_hidden_layers: PositiveInt | None = Field(None, description="decoder layers")
    num_attention_heads: PositiveInt | None = Field(None, description="attention heads of each layer")
    num_key_value_heads: PositiveInt | None = Field(None, description="key and value heads, shared among the others")
    tie_word_embeddings: bool | None = Field(None, description="one matrix as embedding and output layer")


class CausalLMSpec(Model):
    """A Llama or Qwen decoder of transformers; our image, action and state ids stand behind its own vocabulary."""

    kind: Literal["causal_lm"]
    init: Literal["scratch", "pretrained"] = Field("scratch", description="random weights, or those of `checkpoint`")
    family: Literal["llama", "qwen2", "qwen3"] | None = Field(
        None, description="architecture; null: llama from scratch, else what the checkpoint's config.json says"
    )
    preset: Literal["tiny", "small"] | None = Field(None, description="geometry of a model from scratch")
    sizes: CausalLMSizes = CausalLMSizes()
    checkpoint: str | None = Field(None, description="folder or hub id of a Llama, Qwen2 or Qwen3")
    residual_dropout: ResidualDropout = 0.0
    adapter: Adapter = None
    max_seq_len: MaxSeqLen = 4096

    @model_validator(mode="after")
    def _weights_have_one_source(self) -> Self:
        if self.init == "scratch" and (self.preset is None or self.checkpoint is not None):
            raise ValueError("init: scratch needs a preset (tiny or small) and no checkpoint")
        sized = self.preset is not None or self.sizes != CausalLMSizes()
        if self.init == "pretrained" and (self.checkpoint is None or sized):
            raise ValueError("init: pretrained needs a checkpoint (folder or hub id), no preset and no sizes")
        return self


class CustomBackboneSpec(Model):
    """Your own backbone: a class derived from vlatrack.models.backbones.base.Backbone."""

    kind: Literal["custom"]
    target: CustomTarget
    options: Options = {}
    max_seq_len: MaxSeqLen = 4096


def _chameleon_by_default(value: object) -> object:
    return {"kind": "chameleon", **value} if isinstance(value, dict) else value


BackboneSpec = Annotated[
    ChameleonSpec | CausalLMSpec | CustomBackboneSpec,
    Field(discriminator="kind", description="the decoder that reads the token rows; without kind a Chameleon"),
    BeforeValidator(_chameleon_by_default),
]


class ActionHeadSpec(Model):
    """The continuous head that predicts a whole action chunk from the backbone's hidden states."""

    time_horizon: PositiveInt = Field(5, description="steps in one action chunk")
    action_dim: PositiveInt = Field(7, description="numbers in one action")
    reduced_ratio: Annotated[float, Field(gt=0, le=1)] = Field(0.25, description="head width / backbone width")
    encoder_layers: PositiveInt = Field(2, description="layers of the transformer encoder")
    heads: PositiveInt = Field(4, description="attention heads of each layer")
    dropout: Probability = Field(0.1, description="dropout in the encoder")
    mask_padding: bool = Field(
        True, description="ignore the padding of shorter prompts; false: attend to it as the reference does"
    )


# --- tokens ------------------------------------------------------------------------------------


class ExplicitRanges(Model):
    """Bin ranges written down by hand: one number a dimension."""

    action_low: tuple[float, ...] = Field(description="lowest action, in the data's units")
    action_high: tuple[float, ...] = Field(description="highest action, in the data's units")
    state_low: tuple[float, ...] = Field((), description="lowest state, in the data's units")
    state_high: tuple[float, ...] = Field((), description="highest state, in the data's units")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        for what in ("action", "state"):
            low, high = getattr(self, f"{what}_low"), getattr(self, f"{what}_high")
            if len(low) != len(high):
                raise ValueError(f"{what}_low has {len(low)} numbers and {what}_high has {len(high)}")
            for i, (lo, hi) in enumerate(zip(low, high, strict=True)):
                if lo >= hi:
                    raise ValueError(f"{what}_low[{i}] = {lo:g} is not below {what}_high[{i}] = {hi:g}")
        return self


class ImageTokenizerSpec(Model):
    """The image tokenizer (a ChameleonVQVAE): from the checkpoint, or small and fitted to the data."""

    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = Field(
        256, description="pixels of each side; one token covers 16 x 16 pixels"
    )
    codebook_size: Annotated[int, Field(ge=2, le=8192)] = Field(512, description="codes fitted by k-means (scratch)")
    base_channels: Annotated[int, Field(ge=32, multiple_of=32)] = Field(32, description="encoder width (scratch)")
    fit_frames: PositiveInt = Field(1000, description="training frames the codebook is fitted to (scratch)")


class TokenizerSpec(Model):
    """How actions, states, images and text become token ids."""

    bins: Annotated[int, Field(ge=2, le=4998)] = Field(256, description="bin edges on [-1, 1] of an action or a state")
    statistics: Literal["minmax", "quantiles"] | ExplicitRanges = Field(
        "minmax", description="source of low/high per dimension; quantiles are 1 % and 99 %"
    )
    checkpoint: str | None = Field(
        None,
        description="folder or hub id of a Chameleon whose image tokenizer is used (for a Chameleon backbone its text "
        "tokenizer as well); null: the backbone's, or one fitted to the data",
    )
    image: ImageTokenizerSpec = ImageTokenizerSpec()


class CustomLoss(Model):
    """Your own loss term: a subclass of vlatrack.models.losses.base.LossTerm, called with `weight` and `options`."""

    kind: Literal["custom"]
    target: CustomTarget
    weight: NonNegativeFloat = Field(description="weight of its mean in the loss; 0: only logged")
    options: Options = {}


class LossSpec(Model):
    """loss = closs + loss_ct_weights * loss_ct + z_loss_weight * z_loss + the weighted terms of your own."""

    loss_ct_weights: NonNegativeFloat = Field(10.0, description="weight of the continuous head's L1 error")
    z_loss_weight: NonNegativeFloat = Field(1.0e-5, description="weight of the z loss; 0: not computed")
    image_token_weight: PositiveFloat | None = Field(None, description="cross-entropy weight of image ids 3..8194")
    ct_target: Literal["tokens", "raw"] = Field("tokens", description="L1 target: decoded label tokens, or raw actions")
    terms: tuple[CustomLoss, ...] = Field((), description="further terms, which are added to the loss")
    gradient_share_every: PositiveInt | None = Field(
        None, description="log each term's share of the gradient norm every this many optimiser steps; null: never"
    )


# --- data --------------------------------------------------------------------------------------


class EpisodeSelection(Model):
    """Which episodes of a dataset are used."""

    tasks: Annotated[tuple[str, ...], Once] | None = Field(None, description="only these tasks (instruction texts)")
    exclude_tasks: Annotated[tuple[str, ...], Once] = Field((), description="all tasks but these")
    part: Literal["all", "all_but_last_tenth", "last_tenth"] = Field("all", description="of each task's episodes")

    @model_validator(mode="after")
    def _tasks_or_exclude_tasks(self) -> Self:
        if self.tasks is not None and self.exclude_tasks:
            raise ValueError("give tasks or exclude_tasks, not both")
        return self


class LeRobotSource(EpisodeSelection):
    """A dataset folder in the LeRobot v3.0 layout."""

    kind: Literal["lerobot"] = "lerobot"
    path: str = Field(description="the dataset's folder, absolute or from where vlatrack is started")
    action: str = Field("action", description="feature that holds the action")
    state: str | None = Field("observation.state", description="feature that holds the proprioceptive state")


class LiberoSource(EpisodeSelection):
    """A folder of LIBERO demonstrations, one HDF5 file a task."""

    kind: Literal["libero_hdf5"]
    path: str = Field(description="the folder of the HDF5 files, absolute or from where vlatrack is started")
    skip_no_ops: bool = Field(
        True, description="leave out steps in which the robot does not move, as the reference does"
    )


class CustomSource(EpisodeSelection):
    """Your own dataset: `package.module:Class`, called with `options` as keyword arguments."""

    kind: Literal["custom"]
    target: CustomTarget
    options: Options = {}


Source = Annotated[LeRobotSource | LiberoSource | CustomSource, Field(discriminator="kind")]


class DataSpec(Model):
    """The demonstrations: what the policy sees of them, and the three splits."""

    cameras: Annotated[tuple[str, ...], Field(min_length=1), Once] = Field(
        description="camera features in prompt order: third-person first, then wrist"
    )
    use_state: bool = Field(True, description="put the proprioceptive state into the prompt")
    history: PositiveInt = Field(1, description="time steps of images in the prompt, the current one included")
    samples: Annotated[tuple[Literal["vla", "world_model"], ...], Field(min_length=1), Once] = Field(
        ("vla",), description="sample kinds in the training mixture, in equal parts"
    )
    sample_every: PositiveInt = Field(
        1, description="a training sample starts at every n-th step of an episode; at 80 Hz neighbours are nearly alike"
    )
    train: Source = Field(description="episodes that the policy learns from")
    val_ind: Source | None = Field(None, description="held-out episodes of training tasks")
    val_ood: Source | None = Field(None, description="held-out tasks")


# --- training ----------------------------------------------------------------------------------


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
    keep: Literal["all", "all_matmuls", "every_second", "none"] = Field(
        "all",
        description="activations kept for the backward pass; others are computed again: less memory, more time, same "
        "numbers; all_matmuls: results of attention and matrix products; every_second: of attention and every second "
        "product; none: the input of each layer",
    )
    offload: Literal["none", "activations"] = Field(
        "none",
        description="activations: what is kept waits in the host's memory for the backward pass, same numbers; best "
        "with keep none; not measured on a GPU yet",
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
    compile: Literal["auto"] | bool = Field(
        "auto",
        description="compile the decoder layers, in one graph for all, and pad rows to multiples of 64 positions; "
        "auto: on a GPU",
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
    checkpoint: CheckpointSpec = CheckpointSpec()
    profile: ProfileSpec | None = Field(None, description="null: no profiler trace")


class OpenLoopSpec(Model):
    """Losses and errors on recorded demonstrations."""

    every_epochs: PositiveInt = Field(1, description="every this many epochs")
    batch_size: PositiveInt = Field(32, description="samples in one forward pass")
    max_samples: PositiveInt | None = Field(None, description="evaluate on an evenly spread subset of this size")


class EvaluateSpec(Model):
    """Evaluation while training."""

    open_loop: OpenLoopSpec | None = Field(OpenLoopSpec(), description="null: no evaluation on recorded data")


# --- tracking ----------------------------------------------------------------------------------

Naming = Annotated[
    Literal["documented", "sections"], Field(description="`train_closs` (documented) or `train/closs` (sections)")
]


CopyCheckpoints = Annotated[
    bool,
    Field(description="copy the weights of the best checkpoint there, however large; false: their path and SHA-256"),
]
CopyUpToMb = Annotated[
    NonNegativeInt, Field(description="larger files of other artifacts stay here too, known by path and SHA-256")
]


class MlflowBackend(Model):
    """MLflow, on a server or on SQLite; a login comes from MLFLOW_TRACKING_USERNAME and _PASSWORD."""

    kind: Literal["mlflow"]
    naming: Naming = "documented"
    tracking_uri: str | None = Field(
        None, description="server or database; null: MLFLOW_TRACKING_URI, or else SQLite inside the runs folder"
    )
    experiment: str | None = Field(None, description="null: MLFLOW_EXPERIMENT_NAME, or else this experiment's name")
    copy_checkpoints: CopyCheckpoints = False
    copy_up_to_mb: CopyUpToMb = 100


class WandbBackend(Model):
    """Weights & Biases; the key comes from WANDB_API_KEY or `wandb login`."""

    kind: Literal["wandb"]
    naming: Naming = "documented"
    project: str | None = Field(None, description="W&B project; null: WANDB_PROJECT, or else vlatrack")
    entity: str | None = Field(None, description="W&B user or team; null: WANDB_ENTITY, or else the account's default")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online if a key is configured")
    copy_checkpoints: CopyCheckpoints = False
    copy_up_to_mb: CopyUpToMb = 100


class TensorboardBackend(Model):
    """TensorBoard: event files in the run directory, needs `vlatrack[tensorboard]`."""

    kind: Literal["tensorboard"]
    naming: Naming = "documented"


class CustomBackend(Model):
    """Your own tracker: a class with the methods of vlatrack.tracking.backends.base.Backend."""

    kind: Literal["custom"]
    target: CustomTarget
    naming: Naming = "documented"
    options: Options = {}


Backend = Annotated[MlflowBackend | WandbBackend | TensorboardBackend | CustomBackend, Field(discriminator="kind")]


class TrackingSpec(Model):
    """Where metrics go, and how often."""

    backends: tuple[Backend, ...] = Field(
        (MlflowBackend(kind="mlflow"),), description="trackers that get every record; []: only the journal"
    )
    group: Name | None = Field(
        None, description="shows runs of a sweep together: children of one run in MLflow, a group in W&B"
    )
    log_every: PositiveInt = Field(10, description="optimiser steps between two records")
    system_every_s: PositiveFloat | None = Field(
        15.0, description="seconds between two records of processor, memory and GPUs; null: none"
    )


# --- the whole ---------------------------------------------------------------------------------


class ExperimentSpec(Model):
    """One experiment: everything that decides its result, and where its metrics go."""

    name: Name
    init_from: str | None = Field(
        None,
        pattern=r"^.+?(@[A-Za-z0-9-]+)?$",
        description="RUN or RUN@CHECKPOINT (last, best or step-…), or the folder of an exported policy: start with its "
        "weights and tokenizers",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of weights, data order and dropout")
    backbone: BackboneSpec
    action_head: ActionHeadSpec = ActionHeadSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    loss: LossSpec = LossSpec()
    data: DataSpec
    optim: OptimSpec = OptimSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        ranges, head = self.tokenizer.statistics, self.action_head
        if isinstance(ranges, ExplicitRanges) and len(ranges.action_low) != head.action_dim:
            raise ValueError(
                f"tokenizer.statistics.action_low has {len(ranges.action_low)} numbers, "
                f"action_head.action_dim is {head.action_dim}"
            )
        if self.data.use_state and self.tokenizer.bins > 498:
            raise ValueError(f"tokenizer.bins = {self.tokenizer.bins}: with data.use_state the layout has room for 498")
        adapter = None if isinstance(self.backbone, CustomBackboneSpec) else self.backbone.adapter
        if adapter is not None and self.train.memory.parameters == "bf16":
            raise ValueError(
                "train.memory.parameters = bf16, but adapters are trained in fp32; leave it out, and set "
                "backbone.adapter.base: bf16 to store what they adapt in bf16"
            )
        if adapter is not None and adapter.base == "bf16" and self.train.precision == "fp32":
            raise ValueError("backbone.adapter.base = bf16 needs train.precision: bf16 or fp8; set that, or base: fp32")
        if self.optim.min_lr > self.optim.lr:
            raise ValueError(f"optim.min_lr = {self.optim.min_lr:g} is above optim.lr = {self.optim.lr:g}")
        if (self.optim.warmup_epochs or 0) >= self.train.epochs:
            raise ValueError(
                f"optim.warmup_epochs = {self.optim.warmup_epochs:g} is not below train.epochs = {self.train.epochs}: "
                "the learning rate would never reach optim.lr"
            )
        decay = (self.optim.warmup_epochs or 0) + (self.optim.decay_epochs or 0)
        if decay > self.train.epochs:
            raise ValueError(
                f"optim.decay_epochs = {self.optim.decay_epochs:g} and the warm-up are longer than train.epochs = "
                f"{self.train.epochs}; shorten them, or train longer"
            )
        return self

    @property
    def storage(self) -> Storage:
        """What parameters and optimiser states are stored in."""
        memory = self.train.memory
        whole_7b = self.backbone.kind == "chameleon" and self.backbone.preset == "7b" and self.backbone.adapter is None
        parameters = memory.parameters or ("bf16" if whole_7b and self.train.precision != "fp32" else "fp32")
        rounding = memory.rounding or "stochastic"
        assert rounding != "nearest", "refused"
        return Storage(parameters, rounding if parameters == "bf16" else None, memory.optimizer_states or parameters)

    @model_validator(mode="after")
    def _stored_numbers_can_be_trained(self) -> Self:
        optim, memory = self.optim, self.train.memory
        if memory.rounding == "nearest":
            raise ValueError(
                "train.memory.rounding: nearest drops every update below half a bf16 ulp, so that small learning rates "
                "train nothing (a comparable fine-tuning ended with a 20.4 % higher loss); use stochastic or kahan"
            )
        storage = self.storage
        if storage.parameters == "fp32" and memory.rounding is not None:
            raise ValueError(
                f"train.memory.rounding = {memory.rounding}, but the parameters are fp32; set it to null, or "
                "train.memory.parameters to bf16"
            )
        if storage.parameters == "bf16" and self.train.precision == "fp32":
            raise ValueError(
                "train.precision = fp32 cannot compute with bf16 parameters; set it to bf16, or "
                "train.memory.parameters to fp32"
            )
        if storage.rounding == "kahan" and storage.optimizer_states == "8bit":
            raise ValueError(
                "train.memory.optimizer_states: 8bit goes with stochastic rounding or fp32 parameters, not with kahan, "
                "whose remainder alone takes as much as it saves; use bf16"
            )
        if storage.optimizer_states == "bf16" and max(optim.betas) > _LARGEST_BF16_BETA:
            raise ValueError(
                f"optim.betas = {', '.join(map(str, optim.betas))}: with train.memory.optimizer_states = bf16 at most "
                f"{_LARGEST_BF16_BETA:g}, else an average changes by less than bf16 resolves; lower it, or use fp32"
            )
        if optim.kind == "muon" and (storage.parameters, storage.optimizer_states) != ("fp32", "fp32"):
            raise ValueError(
                "optim.kind = muon rounds to nearest, so it needs train.memory.parameters and "
                "train.memory.optimizer_states = fp32"
            )
        return self

    @model_validator(mode="after")
    def _best_metric_can_decide(self) -> Self:
        schema = MetricSchema.for_experiment(
            horizon=self.action_head.time_horizon, action_dim=self.action_head.action_dim
        )
        metric = self.train.checkpoint.best_metric
        # An unknown name may belong to a custom loss term, which only a run loads.
        if (problem := schema.why_not_best(metric)) and (metric in schema or not self.loss.terms):
            raise ValueError(f"train.checkpoint.best_metric: {problem}")
        return self
