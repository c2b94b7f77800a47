"""Transformers' Llama and Qwen decoders as backbones, with our token ids appended to their vocabulary.

Legend: B rows, S positions, D width, K vocabulary.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import (
    LlamaConfig,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    StaticCache,
)
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vlatrack.errors import CheckpointError, SpecError
from vlatrack.models.backbones.base import (
    Backbone,
    BackboneFactory,
    BackboneSource,
    Geometry,
    add_residual_dropout,
    check_head_width,
    decoder_further,
    decoder_mask,
)
from vlatrack.models.backbones.pretrained import PretrainedFolder, PretrainedWeights, WeightMap, open_pretrained
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import PretrainedTextTokenizer

Family = Literal["llama", "qwen2", "qwen3"]
Preset = Literal["tiny", "small"]

_FAMILIES: dict[Family, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaModel),
    "qwen2": (Qwen2Config, Qwen2Model),
    "qwen3": (Qwen3Config, Qwen3Model),
}

_PRESETS: dict[Preset, dict[str, int]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}

_GEOMETRY = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
    "max_position_embeddings initializer_range rms_norm_eps rope_parameters attention_bias mlp_bias tie_word_embeddings"
).split()

_SCRATCH_LAYOUT = TokenLayout.after(2, pad=0, bos=1)  # from scratch, text is encoded as bytes


class CausalLMBackbone(Backbone):
    """A decoder of one of the families, its vocabulary extended by image, action and state ids."""

    def __init__(self, geometry: Geometry, *, residual_dropout: float = 0.0) -> None:
        """
        Args:
            geometry: ``family``, ``layout`` (the ids) and ``config`` (transformers' names of the sizes).
        """
        super().__init__()
        self.family: Family = geometry["family"]
        self.layout = TokenLayout(**geometry["layout"])
        config = _config_of(geometry)
        self.decoder = _FAMILIES[self.family][1]._from_config(config, attn_implementation="sdpa")
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        if residual_dropout:
            add_residual_dropout(self.blocks, residual_dropout)

    def use_flex_attention(self) -> None:
        self.decoder.config._attn_implementation = "flex_attention"

    def forward(self, input_ids: Tensor, mask: Tensor | BlockMask) -> Tensor:
        hidden: Tensor = self.decoder(
            input_ids=input_ids,
            attention_mask=decoder_mask(mask, self.decoder.embed_tokens.weight.dtype),
            use_cache=False,
        ).last_hidden_state
        return hidden

    keeps_keys = True

    def forward_further(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, kept: Any | None
    ) -> tuple[Tensor, Any]:
        return decoder_further(self.decoder, input_ids, mask, positions, kept)

    def room_for(self, positions: int) -> StaticCache:
        return StaticCache(self.decoder.config, max_cache_len=positions)

    @property
    def output_layer(self) -> Tensor:
        return self.decoder.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def width(self) -> int:
        return int(self.decoder.config.hidden_size)

    @property
    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.decoder.layers
        return layers

    def geometry(self) -> Geometry:
        config = {name: getattr(self.decoder.config, name, None) for name in _GEOMETRY}
        return {
            "family": self.family,
            "layout": asdict(self.layout),
            "config": {name: value for name, value in config.items() if value is not None},
        }


@dataclass(frozen=True)
class CausalLMFactory(BackboneFactory):
    """A decoder from a preset with optional changes, a checkpoint folder or a hub repository."""

    family: Family | None  # None: that of the checkpoint, or llama from scratch
    preset: Preset | None
    sizes: Mapping[str, int | bool]  # by transformers' names; they override the preset
    checkpoint: str | None
    residual_dropout: float
    max_seq_len: int
    with_weights: bool = True  # false: for the sizes alone, the weights of the checkpoint need not be there

    def open(self) -> BackboneSource:
        if self.checkpoint is None:
            assert self.preset is not None, "the spec asks for a preset or a checkpoint"
            geometry = _scratch_geometry(self.family or "llama", {**_PRESETS[self.preset], **self.sizes})
            geometry["config"]["max_position_embeddings"] = self.max_seq_len
            return BackboneSource(build=partial(self.from_geometry, geometry))
        folder = open_pretrained(self.checkpoint, with_weights=self.with_weights)
        geometry = _pretrained_geometry(folder, self.family, self.max_seq_len)
        vocabulary = folder.config["vocab_size"]
        return BackboneSource(
            build=partial(self.from_geometry, geometry),
            text=_text_tokenizer(folder),
            weights=PretrainedWeights(folder, _weight_map(vocabulary)) if self.with_weights else None,
        )

    def from_geometry(self, geometry: Geometry) -> Backbone:
        return CausalLMBackbone(geometry, residual_dropout=self.residual_dropout)


def _scratch_geometry(family: Family, sizes: Mapping[str, int | bool]) -> dict[str, Any]:
    width, heads, kv_heads = (sizes[name] for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    check_head_width(width, heads)
    if heads % kv_heads:
        raise SpecError(
            f"backbone.sizes: num_attention_heads {heads} is not a multiple of num_key_value_heads ({kv_heads})"
        )
    geometry = {"family": family, "layout": asdict(_SCRATCH_LAYOUT), "config": {**sizes, "head_dim": width // heads}}
    _config_of(geometry)
    return geometry


def _pretrained_geometry(folder: PretrainedFolder, family: Family | None, max_seq_len: int) -> dict[str, Any]:
    config, file = folder.config, folder.path / "config.json"
    found = config.get("model_type")
    if found not in _FAMILIES:
        raise CheckpointError(f"{file}: a {found} model; backbone.kind: causal_lm reads {', '.join(get_args(Family))}")
    if family not in (None, found):
        raise CheckpointError(f"{file}: a {found} model, but backbone.family is {family}")
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if missing := [name for name in wanted if not isinstance(config.get(name), int)]:
        raise CheckpointError(f"{file}: lacks {', '.join(missing)}")
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    if window is not None and window < max_seq_len:
        raise CheckpointError(f"{file}: attends over {window} tokens only; set backbone.max_seq_len to that or less")
    eos = config.get("eos_token_id")
    bos = _special_id(folder, "bos_token_id", eos[0] if isinstance(eos, list) and eos else eos)
    layout = TokenLayout.after(config["vocab_size"], pad=_special_id(folder, "pad_token_id", bos), bos=bos)
    names = [*_GEOMETRY, "rope_theta", "rope_scaling"]  # the last two are what transformers 4 writes
    sizes = {name: config[name] for name in names if config.get(name) is not None}
    sizes.setdefault("num_key_value_heads", config["num_attention_heads"])
    sizes["max_position_embeddings"] = max(config.get("max_position_embeddings") or 0, max_seq_len)
    geometry = {"family": found, "layout": asdict(layout), "config": sizes}
    _config_of(geometry)  # fails now rather than after something slow
    return geometry


def _config_of(geometry: Geometry) -> PreTrainedConfig:
    layout, family = TokenLayout(**geometry["layout"]), geometry["family"]
    try:
        config = _FAMILIES[family][0](**geometry["config"], vocab_size=layout.vocabulary_size)
    except StrictDataclassError as error:
        raise SpecError(f"backbone: no {family} has this geometry ({' '.join(str(error).split())})") from error
    rope_type = config.rope_parameters["rope_type"]
    if config.hidden_act not in ACT2FN or rope_type not in ("default", *ROPE_INIT_FUNCTIONS):
        raise SpecError(f"backbone: hidden_act {config.hidden_act} or rope_type {rope_type} is unknown to transformers")
    return config


def _text_tokenizer(folder: PretrainedFolder) -> PretrainedTextTokenizer:
    tokenizer, vocabulary = PretrainedTextTokenizer.read(folder.path), folder.config["vocab_size"]
    if tokenizer.vocabulary_size > vocabulary:  # its ids would collide with image ids
        raise CheckpointError(
            f"{folder.path}/tokenizer.json: has ids up to {tokenizer.vocabulary_size - 1}, but config.json says "
            f"vocab_size {vocabulary}; it belongs to another model"
        )
    return tokenizer


def _special_id(folder: PretrainedFolder, name: str, default: object) -> int:
    """The special id `name` of config.json, or `default` if it has none."""
    found, vocabulary = folder.config.get(name), folder.config["vocab_size"]
    found = default if found is None else found
    if not isinstance(found, int) or not 0 <= found < vocabulary:
        raise CheckpointError(f"{folder.path}/config.json: {name} is {found}, expected an id below {vocabulary}")
    return found


def _weight_map(vocabulary: int) -> WeightMap:
    """The decoder's parameter names. Rows of appended ids keep their random initial weights."""

    def rename(name: str) -> str | None:
        if name == "lm_head.weight":
            return "backbone.lm_head.weight"
        return f"backbone.decoder.{name.removeprefix('model.')}"

    extended = ("backbone.decoder.embed_tokens.weight", "backbone.lm_head.weight")
    return WeightMap(rename, first_rows=dict.fromkeys(extended, vocabulary))
