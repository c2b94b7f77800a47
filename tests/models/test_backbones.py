"""What every backbone keeps of the protocol."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.base import Backbone, BackboneFactory
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory

SCRATCH = {"preset": "tiny", "checkpoint": None, "max_seq_len": 64}
FACTORIES: dict[str, Callable[[float], BackboneFactory]] = {
    "chameleon": lambda dropout: ChameleonFactory(**SCRATCH, tokenizer=None, residual_dropout=dropout),
    **{
        family: lambda dropout, family=family: CausalLMFactory(
            **SCRATCH, family=family, sizes={"tie_word_embeddings": family == "qwen3"}, residual_dropout=dropout
        )
        for family in ("llama", "qwen2", "qwen3")
    },
}


@pytest.fixture(params=FACTORIES)
def make(request) -> Callable[[float], BackboneFactory]:
    return FACTORIES[request.param]


def new(factory: BackboneFactory) -> Backbone:
    torch.manual_seed(0)
    return factory.open().build().eval()


def hidden_states(backbone: Backbone) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, len(backbone.output_layer), (2, 12)))
    return backbone(ids, attention_mask(ids, backbone.layout))


def test_stored_geometry_and_weights_make_the_same_backbone_again(make, tmp_path) -> None:
    before = new(make(0.0))
    geometry = json.loads(json.dumps(before.geometry()))
    save_file(before.state_dict(), tmp_path / "weights.safetensors")
    after = make(0.0).from_geometry(geometry).eval()
    after.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert after.layout == before.layout
    assert torch.equal(hidden_states(after), hidden_states(before))


def test_width_vocabulary_and_blocks_are_those_of_the_module(make) -> None:
    backbone = new(make(0.0))
    assert hidden_states(backbone).shape == (2, 12, backbone.width)
    assert backbone.output_layer.shape == (backbone.layout.vocabulary_size, backbone.width)
    within = {id(parameter) for block in backbone.blocks for parameter in block.parameters()}
    assert len(backbone.blocks) == 2
    assert within < {id(parameter) for parameter in backbone.parameters()}


def test_gradient_checkpointing_changes_no_number_of_a_training_step(make) -> None:
    results = []
    for checkpointing in (False, True):
        backbone = new(make(0.3)).train()
        if checkpointing:
            backbone.enable_gradient_checkpointing()
        torch.manual_seed(5)
        hidden = hidden_states(backbone)
        hidden.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
        results.append((hidden.detach(), gradients))
    (plain, plain_gradients), (hidden, gradients) = results
    assert torch.equal(hidden, plain)
    for name, expected in plain_gradients.items():
        torch.testing.assert_close(gradients[name], expected, msg=lambda m, n=name: f"{n}: {m}")


def test_gradient_checkpointing_computes_each_block_again_in_the_backward_pass(make) -> None:
    backbone = new(make(0.0)).train()
    backbone.enable_gradient_checkpointing()
    calls = []
    for block in backbone.blocks:
        block.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    hidden = hidden_states(backbone)
    assert len(calls) == 2
    hidden.sum().backward()
    assert len(calls) == 4


def test_residual_dropout_acts_in_training_only(make) -> None:
    plain, dropping = new(make(0.0)), new(make(0.5))
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert torch.equal(hidden_states(plain), hidden_states(dropping))
    dropping.train()
    assert not torch.equal(hidden_states(dropping), hidden_states(dropping))
