"""What every backbone that ships keeps, beside the contract (test_model_contracts.py): activations, dropout, sizes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from vlatrack.errors import SpecError
from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones import activations
from vlatrack.models.backbones.activations import Keep, keep_activations, offload_activations
from vlatrack.models.backbones.base import Backbone, BackboneFactory
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory

SCRATCH = {"preset": "tiny", "checkpoint": None, "max_seq_len": 64}
FACTORIES: dict[str, Callable[[float], BackboneFactory]] = {
    "chameleon": lambda dropout: ChameleonFactory(**SCRATCH, sizes={}, tokenizer=None, residual_dropout=dropout),
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


def step(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Hidden states of a training step with dropout, and the gradients that it has."""
    torch.manual_seed(5)
    hidden = hidden_states(backbone)
    (hidden.square().sum() + (hidden @ backbone.output_layer.t()).square().mean()).backward()
    gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
    return {"hidden": hidden.detach(), **gradients}


def differing(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert results.keys() == expected.keys()
    return [name for name, value in expected.items() if not torch.equal(results[name], value)]


@pytest.mark.parametrize("keep", ["all_matmuls", "every_second", "none"])
def test_activations_that_are_computed_again_change_no_bit_of_a_step_with_dropout(make, keep: Keep) -> None:
    plain, recomputing = new(make(0.3)).train(), new(make(0.3)).train()
    keep_activations(recomputing.blocks, keep)
    assert recomputing.state_dict().keys() == plain.state_dict().keys()
    assert differing(step(recomputing), step(plain)) == []


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all_matmuls", "every_second", "none"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile itself
def test_compiled_blocks_compute_activations_again_in_one_graph_for_all(make, keep: Keep) -> None:
    torch._dynamo.reset()
    plain, compiled = new(make(0.3)).train(), new(make(0.3)).train()
    keep_activations(compiled.blocks, keep)
    graphs = CompileCounterWithBackend("aot_eager")
    for block in compiled.blocks:
        block.compile(fullgraph=True, backend=graphs)
    assert differing(step(compiled), step(plain)) == []
    assert graphs.frame_count == 1


@pytest.mark.parametrize("keep", ["all", "none"])
def test_activations_that_wait_on_the_host_change_no_bit_of_a_step(make, keep: Keep) -> None:
    plain, offloading = new(make(0.3)).train(), new(make(0.3)).train()
    keep_activations(offloading.blocks, keep)
    offload_activations(offloading)
    assert differing(step(offloading), step(plain)) == []


def test_kept_activations_are_copied_to_the_host_and_weights_are_not(make, monkeypatch) -> None:
    copied: list[torch.Tensor] = []
    to_host = activations._to_host

    def noting(kept: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
        packed = to_host(kept)
        if packed[1] is not kept:
            copied.append(packed[1])
        return packed

    monkeypatch.setattr(activations, "_to_host", noting)
    backbone = new(make(0.0)).train()
    offload_activations(backbone)
    hidden_states(backbone).sum().backward()
    weights = {(*parameter.shape,) for parameter in backbone.parameters() if parameter.dim() == 2}
    shapes = {(*value.shape,) for value in copied}
    assert (2, 12, backbone.width) in shapes
    assert not shapes & (weights | {shape[::-1] for shape in weights})


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize(("keep", "again"), [("all", 0), ("all_matmuls", 0), ("every_second", 3), ("none", 6)])
def test_a_block_computes_those_matrix_products_again_that_were_not_kept(make, keep: Keep, again: int) -> None:
    """A layer has seven: the gradient needs the last one's inputs, not its result."""
    backbone = new(make(0.0)).train()
    keep_activations(backbone.blocks, keep)
    hidden = hidden_states(backbone)
    with Products() as products:
        hidden.sum().backward()
    gradients = 2 * 7 * len(backbone.blocks)
    assert products.count - gradients == again * len(backbone.blocks)


def test_residual_dropout_acts_in_training_only(make) -> None:
    plain, dropping = new(make(0.0)), new(make(0.5))
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert torch.equal(hidden_states(plain), hidden_states(dropping))
    dropping.train()
    assert not torch.equal(hidden_states(dropping), hidden_states(dropping))


def test_sizes_of_a_chameleon_override_those_of_its_preset() -> None:
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
    backbone = new(ChameleonFactory(**SCRATCH, sizes=sizes, tokenizer=None, residual_dropout=0.0))
    assert {name: backbone.geometry()[name] for name in sizes} == sizes
    assert backbone.geometry()["num_key_value_heads"] == 6
    assert backbone.geometry()["intermediate_size"] == 192, "as tiny has it"
    assert hidden_states(backbone).shape == (2, 12, 96)


def test_a_width_of_a_chameleon_that_its_heads_do_not_divide_is_refused() -> None:
    factory = ChameleonFactory(**SCRATCH, sizes={"hidden_size": 50}, tokenizer=None, residual_dropout=0.0)
    with pytest.raises(SpecError, match=r"hidden_size 50 is not a multiple of 2 \* num_attention_heads \(4\)"):
        factory.open()
