"""The policy in an experiment's YAML: backbone, ActionHead, tokenizers and loss terms."""

from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from vlatrack.spec.base import CustomTarget, Model, Once, Options, Probability

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
    base: Literal["fp32", "bf16", "4bit"] = Field(
        "fp32",
        description="the frozen weights of the backbone; what is trained, adapters and head, stays fp32; 4bit: linear "
        "layers in NF4 with double quantisation (QLoRA), whole in each process, the rest in bf16",
    )


Adapter = Annotated[
    AdapterSpec | None,
    Field(description="train adapters and the head alone; null: the whole policy. `vlatrack export` merges them"),
]


class ChameleonSizes(Model):
    """Sizes of a Chameleon from scratch, under transformers' names; null: the preset's."""

    hidden_size: PositiveInt | None = Field(None, description="width of the hidden states")
    intermediate_size: PositiveInt | None = Field(None, description="width inside the MLP of a layer")
    num_hidden_layers: PositiveInt | None = Field(None, description="decoder layers")
    num_attention_heads: PositiveInt | None = Field(None, description="attention heads of each layer")


class CausalLMSizes(ChameleonSizes):
    """Sizes of a Llama or Qwen from scratch, under transformers' names; null: the preset's."""

    num_key_value_heads: PositiveInt | None = Field(None, description="key and value heads, shared among the others")
    tie_word_embeddings: bool | None = Field(None, description="one matrix as embedding and output layer")


class ChameleonSpec(Model):
    """The autoregressive backbone, one of transformers' Chameleon models."""

    kind: Literal["chameleon"] = "chameleon"
    init: Literal["scratch", "pretrained"] = Field("scratch", description="random weights, or those of `checkpoint`")
    preset: Literal["tiny", "small", "7b"] | None = Field(None, description="geometry of a model from scratch")
    sizes: ChameleonSizes | None = Field(None, description="sizes of a model from scratch that differ from the preset")
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
        sized = self.preset is not None or self.sizes is not None
        if self.init == "pretrained" and (self.checkpoint is None or sized):
            raise ValueError("init: pretrained needs a checkpoint (folder or hub id), no preset and no sizes")
        return self


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


class ComputedRanges(Model):
    """Bin ranges computed from the training episodes, but for dimensions that are in [-1, 1] and stay as they are."""

    method: Literal["minmax", "quantiles"] = Field(description="extremes, or the 1 % and 99 % quantiles")
    action_as_is: Annotated[tuple[NonNegativeInt, ...], Once] = Field(
        (), description="numbers of an action, from 0, whose range is [-1, 1], such as a gripper: open or closed"
    )
    state_as_is: Annotated[tuple[NonNegativeInt, ...], Once] = Field((), description="the same, of a state")


def _form_of_ranges(value: object) -> str:
    keys = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Model) else {}
    return "by hand" if any(name in keys for name in ExplicitRanges.model_fields) else "computed"


Ranges = Annotated[
    Annotated[ComputedRanges, Tag("computed")] | Annotated[ExplicitRanges, Tag("by hand")],
    Discriminator(_form_of_ranges),  # so that a mistake is explained in terms of the form that was meant
]


class ImageTokenizerSpec(Model):
    """The image tokenizer: the checkpoint's, or from scratch a codebook that is fitted to the data."""

    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] = Field(
        256, description="pixels of each side; one token covers 16 x 16 pixels"
    )
    codebook_size: Annotated[int, Field(ge=2, le=8192)] = Field(
        512, description="codes that are fitted to the data (scratch); of all places together with projections"
    )
    encoder: Literal["squares", "projections", "convolutions"] = Field(
        "squares",
        description="what the codes stand for (scratch): squares of pixels; training images that the whole image "
        "resembles in random projections, which tell most of where things are; or features of random convolutions, "
        "which tell least and are there for runs from before",
    )
    base_channels: Annotated[int, Field(ge=32, multiple_of=32)] = Field(32, description="width of the convolutions")
    fit_frames: PositiveInt = Field(1000, description="training frames the codebook is fitted to (scratch)")

    @model_validator(mode="after")
    def _each_place_has_codes(self) -> Self:
        places = (self.image_size // 16) ** 2
        if self.encoder == "projections" and (self.codebook_size % places or self.codebook_size < 16 * places):
            raise ValueError(
                f"encoder: projections has codes of its own for each of the {places} places of {self.image_size} "
                f"pixels: make codebook_size a multiple of {places}, {16 * places} or more, or image_size smaller"
            )
        return self


class TokenizerSpec(Model):
    """How actions, states, images and text become token ids."""

    bins: Annotated[int, Field(ge=2, le=4998)] = Field(256, description="bin edges on [-1, 1] of an action or a state")
    statistics: Literal["minmax", "quantiles"] | Ranges = Field(
        "minmax",
        description="source of low/high per dimension; quantiles are 1 % and 99 %; with `method` as a key of its own "
        "some can stay as they are",
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
