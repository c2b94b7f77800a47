"""Compiled layers compute what plain ones do, in one graph for all of them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_policy import BINS, DIMS, GEOMETRY, HORIZON, LAYOUT, vla_row, world_model_row

from vlatrack.errors import BackboneError
from vlatrack.models.backbones.activations import keep_activations
from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch, collate
from vlatrack.training.compilation import LENGTH_MULTIPLE, compile_blocks

# torch's tracer reads the gradient of every input and and hides its own warning unless it is an error.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs(list):
    """A backend that keeps the graphs that it gets, and runs them as they are."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Any:
        self.append(graph)
        return graph.forward


def make_policy(*, residual_dropout: float = 0.0, layers: int = 4) -> VlaPolicy:
    torch.manual_seed(0)
    config = backbone_config({**GEOMETRY, "num_hidden_layers": layers})
    head = ActionHead(backbone_width=32, time_horizon=HORIZON, action_dim=DIMS, reduced_width=16, heads=2, dropout=0)
    return VlaPolicy(
        ChameleonBackbone(config, residual_dropout=residual_dropout),
        head,
        layout=LAYOUT,
        bins=BINS,
        losses=documented_terms(LAYOUT, (HORIZON, DIMS)),
    ).train()


def batch_of(*words: int | None, length_multiple: int = LENGTH_MULTIPLE) -> Batch:
    """A row for each: a prompt of so many words, or a row of the world model."""
    generator = np.random.default_rng(0)
    rows = [world_model_row(generator) if count is None else vla_row(generator, count) for count in words]
    return collate(rows, LAYOUT, length_multiple=length_multiple)


def step(policy: VlaPolicy, batch: Batch) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """The loss, the metrics, and the gradient of each parameter."""
    policy.zero_grad()
    torch.manual_seed(3)
    output = policy(batch)
    loss = policy.loss(output, policy.loss_counts(batch))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
    return loss.item(), policy.metric_values(output.states), gradients


@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_layers_share_one_graph_and_evaluation_has_one_of_its_own(checkpointed: bool) -> None:
    policy, graphs = make_policy(residual_dropout=0.1), Graphs()
    if checkpointed:
        keep_activations(policy.backbone.blocks, "none")
    compile_blocks(policy, backend=graphs)
    for words in [(3, None), (9, 5), (30, None)]:  # of different lengths, all below 64
        step(policy, batch_of(*words))
    assert len(graphs) == 1
    policy.eval()
    with torch.no_grad():
        policy(batch_of(3, None))
        policy(batch_of(20, None))
    assert len(graphs) == 2


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_compiled_step_is_the_step_of_plain_layers(checkpointed: bool) -> None:
    results = []
    for compiled in (False, True):
        policy = make_policy(layers=2)
        if checkpointed:
            keep_activations(policy.backbone.blocks, "none")
        if compiled:
            compile_blocks(policy, backend=Graphs())
        results.append(step(policy, batch_of(3, None, 9)))
    (loss, metrics, gradients), (compiled_loss, compiled_metrics, compiled_gradients) = results
    assert compiled_loss == pytest.approx(loss, rel=1e-6)
    assert compiled_metrics == pytest.approx(metrics, rel=1e-5)
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # in what the inductor imports
def test_code_of_the_inductor_computes_the_same_step_within_1e_5() -> None:
    results = []
    for compiled in (False, True):
        policy = make_policy(layers=2)
        if compiled:
            compile_blocks(policy)
        results.append(step(policy, batch_of(3, None, 9)))
    (loss, _, gradients), (compiled_loss, _, compiled_gradients) = results
    assert compiled_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-4, atol=1e-5)


def test_padding_to_a_multiple_changes_neither_losses_nor_metrics_nor_gradients() -> None:
    policy = make_policy(layers=2)
    short, long = batch_of(3, None, 9, length_multiple=1), batch_of(3, None, 9)
    assert short.input_ids.shape[1] % LENGTH_MULTIPLE
    assert long.input_ids.shape[1] == LENGTH_MULTIPLE
    assert (short.tokens, short.longest_prompt) == (long.tokens, long.longest_prompt)
    loss, metrics, gradients = step(policy, short)
    padded_loss, padded_metrics, padded_gradients = step(policy, long)
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    assert padded_metrics == pytest.approx(metrics, rel=1e-5)
    torch.testing.assert_close(padded_gradients, gradients, rtol=1e-4, atol=1e-6)


def test_an_idle_batch_is_as_long_as_the_others() -> None:
    idle = collate([], LAYOUT, length_multiple=LENGTH_MULTIPLE)
    assert idle.is_idle
    assert idle.input_ids.shape == (1, LENGTH_MULTIPLE)


@pytest.mark.parametrize("setting", ["train.compile", "compile"])
def test_a_layer_that_is_not_one_graph_names_the_setting(setting: str) -> None:
    policy = make_policy(layers=2)

    def reads_a_value(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 2 if output.sum().item() > 0 else output

    policy.backbone.blocks[0].mlp.register_forward_hook(reads_a_value)
    compile_blocks(policy, backend=Graphs(), setting=setting)
    with pytest.raises(BackboneError, match="layer of ChameleonBackbone cannot be compiled as one graph") as raised:
        policy(batch_of(3, None))
    assert str(raised.value).endswith(f"; set {setting}: false")
    assert "\n" not in str(raised.value)


def test_an_error_outside_of_the_layers_is_not_blamed_on_the_compiler() -> None:
    policy = make_policy(layers=2)
    compile_blocks(policy, backend=Graphs())

    def breaks(module: torch.nn.Module, inputs: Any) -> None:
        raise RuntimeError("broken")

    policy.backbone.chameleon.model.embed_tokens.register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match=r"^broken$"):
        policy(batch_of(3, None))
