"""The second backbone: transformers' Llama and Qwen decoders with our ids behind their vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn.functional import cross_entropy, l1_loss
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vlatrack.errors import CheckpointError, SpecError
from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.base import BackboneSource
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import collate
from vlatrack.tokens.bins import Bins, decode_ids
from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout
from vlatrack.tokens.prompts import TokenSequence, vla_sequence, world_model_sequence

HORIZON, DIMS, BINS = 3, 2, Bins(64)
WORDS = 50  # vocabulary of the pretrained models here
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def factory(**changes) -> CausalLMFactory:
    settings = {
        "family": None,
        "preset": "tiny",
        "sizes": {},
        "checkpoint": None,
        "residual_dropout": 0.0,
        "max_seq_len": 256,
    }
    return CausalLMFactory(**(settings | changes))


def policy_of(source: BackboneSource) -> VlaPolicy:
    torch.manual_seed(0)
    backbone = source.build()
    head = ActionHead(backbone_width=backbone.width, time_horizon=HORIZON, action_dim=DIMS, reduced_width=16, heads=2)
    losses = documented_terms(backbone.layout, (HORIZON, DIMS), loss_ct_weights=10.0, z_loss_weight=1e-3)
    return VlaPolicy(backbone, head, layout=backbone.layout, bins=BINS, losses=losses).eval()


def rows_for(layout: TokenLayout) -> list[TokenSequence]:
    """VLA rows of different lengths, and a world-model row between them."""
    generator = np.random.default_rng(0)

    def image() -> np.ndarray:
        return layout.first_image_code + generator.integers(0, 500, (2, 2))

    def vla(words: int) -> TokenSequence:
        actions = generator.uniform(-1, 1, (HORIZON, DIMS)).astype(np.float32)
        return vla_sequence(
            text=(layout.byte_base + generator.integers(0, 256, words)).tolist(),
            state=BINS.encode(generator.uniform(-1, 1, DIMS), start=layout.state_start),
            images=[image()],
            action_ids=BINS.encode(actions, start=layout.action_start),
            actions=actions,
            layout=layout,
            max_length=256,
        )

    action = BINS.encode(generator.uniform(-1, 1, DIMS), start=layout.action_start)
    world = world_model_sequence(
        text=[layout.byte_base], history=[([image()], action)], next_images=[image()], layout=layout, max_length=256
    )
    return [vla(3), world, vla(12), vla(1)]


def test_our_ids_stand_behind_the_models_own_and_never_meet() -> None:
    layout = TokenLayout.after(1000, pad=7, bos=9)
    used = [
        *(layout.first_image_code + code for code in range(8192)),
        *(layout.image_end, layout.image_start, layout.end_of_turn, layout.end_of_image_row),
        *(layout.grid_base + n for n in range(1, 33)),
        *(layout.action_start, layout.action_end, layout.state_start, layout.state_end),
        *Bins(4998).encode(np.linspace(-1, 1, 9000), start=layout.action_start),
        *Bins(498).encode(np.linspace(-1, 1, 900), start=layout.state_start),
        *(layout.byte_base + byte for byte in range(256)),
    ]
    assert min(used) == 1000
    assert max(used) == layout.vocabulary_size - 1
    assert len(set(used)) == 8192 + 4 + 32 + 4 + 4998 + 498 + 256
    assert (layout.pad, layout.bos) == (7, 9)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_a_naive_computation(family: str, tied: bool) -> None:
    """Transformers' own causal LM on single rows: full logits, a mask built by a loop, torch's losses."""
    policy = policy_of(factory(family=family, sizes={"tie_word_embeddings": tied}).open())
    rows = rows_for(policy.layout)
    with torch.inference_mode():
        ours = policy.metric_values(policy(collate(rows, policy.layout)).states)
        naive = naive_losses(policy, full_model(policy), rows)
    for name in ("closs", "z_loss", "loss_ct", "loss"):
        assert ours[name] == pytest.approx(naive[name], rel=1e-6), name


def full_model(policy: VlaPolicy) -> torch.nn.Module:
    """The same weights in transformers' class with a head of its own, and attention written out."""
    _, model_class = FAMILIES[policy.backbone.family]
    model = model_class._from_config(policy.backbone.decoder.config, attn_implementation="eager").eval()
    model.model.load_state_dict(policy.backbone.decoder.state_dict())
    model.lm_head.weight = torch.nn.Parameter(policy.backbone.output_layer)
    return model


def naive_losses(policy: VlaPolicy, model: torch.nn.Module, rows: list[TokenSequence]) -> dict[str, float]:
    logits, labels, errors = [], [], []
    for row in rows:
        ids = torch.from_numpy(row.input_ids)[None]
        additive = torch.where(naive_mask(row.input_ids, policy.layout), 0.0, torch.finfo(torch.float32).min)
        output = model(ids, attention_mask=additive[None, None], output_hidden_states=True, use_cache=False)
        logits.append(output.logits[0, :-1])
        labels.append(torch.from_numpy(row.labels)[1:])
        if row.actions is not None:
            starts = np.flatnonzero(row.labels == policy.layout.action_start)
            ids_of_actions = np.stack([row.labels[start + 1 : start + 1 + DIMS] for start in starts])
            decoded = decode_ids(ids_of_actions, BINS.centres, start=policy.layout.action_start)
            prompt = output.hidden_states[-1][:, : starts[0]]
            predicted = policy.action_head(prompt, torch.tensor([starts[0]]))[0]
            errors.append(l1_loss(predicted, torch.from_numpy(decoded).float()).item())
    scores, targets = torch.cat(logits), torch.cat(labels)
    losses = {
        "closs": cross_entropy(scores, targets, ignore_index=IGNORED_LABEL).item(),
        "z_loss": scores[targets != IGNORED_LABEL].logsumexp(-1).square().mean().item(),
        "loss_ct": float(np.mean(errors)),
    }
    losses["loss"] = losses["closs"] + 10.0 * losses["loss_ct"] + 1e-3 * losses["z_loss"]
    return losses


def naive_mask(ids: np.ndarray, layout: TokenLayout) -> torch.Tensor:
    """The rule in words: causal, but no action block behind the last image sees an earlier action block."""
    last_image = max(np.flatnonzero(ids == layout.image_end), default=-1)
    block_of, block, inside = [], 0, False
    for token in ids:
        if token == layout.action_start:
            block, inside = block + 1, True
        block_of.append(block if inside else 0)
        if token == layout.action_end:
            inside = False
    mask = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for query in range(len(ids)):
        for key in range(query + 1):
            restricted = block_of[query] and query > last_image
            mask[query, key] = not (restricted and block_of[key] and block_of[key] != block_of[query])
    return mask


# --- pretrained ------------------------------------------------------------------------------------


def pretrained(folder: Path, family: str, *, tied: bool = False, **config) -> Path:
    """A model of the library's own making, with a text tokenizer."""
    config_class, model_class = FAMILIES[family]
    torch.manual_seed(1)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    model = model_class(config_class(vocab_size=WORDS, **SIZES, tie_word_embeddings=tied, **(ids | config)))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({"[UNK]": 3, "square": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def from_folder(folder: Path, **changes) -> CausalLMFactory:
    return factory(preset=None, checkpoint=str(folder), **changes)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("qwen2", True), ("qwen3", True), ("qwen3", False)])
def test_a_pretrained_model_computes_on_its_own_words_what_it_did_before(tmp_path, family, tied) -> None:
    folder = pretrained(tmp_path, family, tied=tied)
    original = FAMILIES[family][1].from_pretrained(folder).eval()
    source = from_folder(folder).open()
    policy = policy_of(source)
    source.weights.copy_into(policy)
    words = torch.randint(0, WORDS, (2, 20))
    with torch.inference_mode():
        hidden = policy.backbone(words, attention_mask(words, policy.layout))
        logits = hidden @ policy.backbone.output_layer[:WORDS].t()
        torch.testing.assert_close(logits, original(words).logits)
    assert source.text.encode("square what") == [4, 3]
    assert policy.layout.first_image_code == WORDS
    assert (policy.layout.bos, policy.layout.pad) == (1, 1)


def test_rows_of_our_ids_begin_as_those_of_a_new_model(tmp_path) -> None:
    source = from_folder(pretrained(tmp_path, "llama", initializer_range=0.05)).open()
    policy = policy_of(source)
    fresh = {
        name: policy.state_dict()[f"backbone.{name}"].clone()
        for name in ("decoder.embed_tokens.weight", "lm_head.weight")
    }
    source.weights.copy_into(policy)
    for name, before in fresh.items():
        after = policy.state_dict()[f"backbone.{name}"]
        assert torch.equal(after[WORDS:], before[WORDS:])
        assert not torch.equal(after[:WORDS], before[:WORDS])
        assert after[WORDS:].std().item() == pytest.approx(0.05, rel=0.02)


def test_rope_scaling_is_read_as_transformers_4_wrote_it(tmp_path) -> None:
    folder = pretrained(tmp_path, "llama")
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_type": "llama3",
    }
    edit_config(folder, rope_theta=500000.0, rope_scaling=scaling, rope_parameters=None)
    rope = from_folder(folder).open().build().decoder.config.rope_parameters
    assert rope == scaling | {"rope_theta": 500000.0}


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BAD_CONFIGS = {
    "another kind of model": ({"model_type": "gpt2"}, "a gpt2 model; .* reads llama, qwen2, qwen3"),
    "no kind": ({"model_type": None}, "a None model"),
    "another family than asked for": ({"model_type": "qwen2"}, "a qwen2 model, but backbone.family is llama"),
    "a size that is missing": ({"hidden_size": None}, "lacks hidden_size"),
    "a size that is no number": ({"vocab_size": "many"}, "lacks vocab_size"),
    "a bos beyond the vocabulary": ({"bos_token_id": 99}, "bos_token_id is 99, expected an id below 50"),
    "no bos and no eos": ({"bos_token_id": None, "eos_token_id": None}, "bos_token_id is None"),
    "a window": ({"use_sliding_window": True, "sliding_window": 100}, "attends over 100 tokens only"),
    "another vocabulary than its tokenizer": (
        {"vocab_size": 4},
        r"tokenizer.json: has ids up to 4, but .* vocab_size 4",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_folder_that_cannot_be_read_is_one_clear_line(tmp_path, changes, message) -> None:
    folder = pretrained(tmp_path, "llama")
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_folder(folder, family="llama").open()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": 1, "rms_norm_eps": "small"},
            "no llama has this geometry .*'rms_norm_eps' expected float",
        ),
        ({"hidden_act": "sine"}, "hidden_act sine or rope_type default is unknown"),
    ],
)
def test_a_config_that_makes_no_model_is_one_clear_line(tmp_path, changes, message) -> None:
    folder = pretrained(tmp_path, "llama")
    edit_config(folder, **changes)
    with pytest.raises(SpecError, match=message) as caught:
        from_folder(folder).open()
    assert len(str(caught.value).splitlines()) == 1


def test_weights_of_another_size_than_the_config_says_are_refused_by_name(tmp_path) -> None:
    folder = pretrained(tmp_path, "llama")
    edit_config(folder, intermediate_size=96)
    source = from_folder(folder).open()
    with pytest.raises(
        CheckpointError, match=r"down_proj\.weight has shape \[32, 48\], this experiment needs \[32, 96\]"
    ):
        source.weights.copy_into(policy_of(source))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 50}, r"hidden_size 50 is not a multiple of 2 \* num_attention_heads \(4\)"),
        ({"num_key_value_heads": 3}, r"num_attention_heads 4 is not a multiple of num_key_value_heads \(3\)"),
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes, message) -> None:
    with pytest.raises(SpecError, match=message):
        factory(sizes=sizes).open()
