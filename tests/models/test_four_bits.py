"""Adapters beside frozen layers in 4 bits."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vlatrack.errors import MissingPackageError
from vlatrack.models.backbones.activations import keep_activations
from vlatrack.models.backbones.adapter import Adapter, add_adapter, merge_adapter
from vlatrack.models.backbones.four_bits import (
    FourBitLinear,
    count_weights,
    four_bit_layers,
    import_bitsandbytes,
    weights_of,
)
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import Batch, collate
from vlatrack.training.compilation import compile_blocks

pytest.importorskip("bitsandbytes")

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
KINDS = ["lora", pytest.param("dora", marks=pytest.mark.slow)]


def adapted(policy: VlaPolicy, kind: str = "lora", **changes) -> VlaPolicy:
    settings = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ("q_proj", "down_proj"), "base": "4bit"}
    torch.manual_seed(1)
    add_adapter(policy.backbone, Adapter(kind=kind, **(settings | changes)))
    return policy


@pytest.fixture
def batch(make_policy, rows) -> Batch:
    return collate(rows, make_policy().layout)


def loss_of(policy: VlaPolicy, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return policy.loss(policy(batch), policy.loss_counts(batch))


def trained(policy: VlaPolicy, batch: Batch, steps: int, lr: float = 3e-3) -> list[float]:
    """The losses of a few steps."""
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = loss_of(policy, batch)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.fixture
def layer() -> nn.Linear:
    import_bitsandbytes()
    torch.manual_seed(0)
    layer = nn.Linear(512, 256, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


def test_a_number_takes_little_more_than_four_bits(layer: nn.Linear) -> None:
    packed = FourBitLinear(layer)
    bits = 8 * sum(tensor.numel() * tensor.element_size() for tensor in weights_of(packed)) / (512 * 256)
    assert 4.1 < bits < 4.25
    assert (count_weights(packed), list(packed.parameters())) == (512 * 256, [])
    error = (packed.weight - layer.weight).square().mean() / layer.weight.square().mean()
    assert 0.005 < error < 0.012  # of 16 levels for a normal distribution


def test_a_layer_in_four_bits_multiplies_by_its_rounded_weight_and_so_does_its_gradient(layer: nn.Linear) -> None:
    packed, (x, same) = FourBitLinear(layer), torch.randn(2, 3, 512, requires_grad=True).detach().repeat(2, 1, 1, 1)
    x.requires_grad_(), same.requires_grad_()
    plain = packed.plain()
    packed(x).float().square().sum().backward()
    plain(same).square().sum().backward()
    torch.testing.assert_close(packed(x).float(), plain(same), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(x.grad, same.grad, rtol=2e-2, atol=2e-2)


def test_a_layer_on_the_meta_device_is_filled_as_one_that_was_never_there(layer: nn.Linear) -> None:
    empty = FourBitLinear(copy.deepcopy(layer).to("meta"))
    assert all(tensor.is_meta for tensor in empty.buffers())
    empty.to_empty(device="cpu")
    empty.fill(layer.weight)
    expected = FourBitLinear(layer).state_dict()
    assert empty.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in empty.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_trained_beside_layers_in_four_bits_and_nothing_else_changes(
    make_policy, batch, kind: str
) -> None:
    policy = adapted(make_policy(), kind)
    assert len(list(four_bit_layers(policy.backbone))) == len(ALL) * len(policy.backbone.blocks)
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in policy.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    losses = trained(policy.train(), batch, 16)
    assert losses[-1] < 0.95 * losses[0]
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(before[name], value)}
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == changed


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_plain_ones_that_compute_what_the_adapters_did(make_policy, batch, kind: str) -> None:
    policy, names = make_policy(), make_policy().state_dict().keys()
    adapted(policy, kind)
    trained(policy, batch, 2)
    with torch.no_grad():
        before = loss_of(policy, batch)
        merge_adapter(policy.backbone)
        after = loss_of(policy, batch)
    assert policy.state_dict().keys() == names
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    torch.testing.assert_close(after, before, rtol=3e-3, atol=0)


def test_evaluating_a_policy_changes_nothing_that_it_is_stored_in(make_policy, batch) -> None:
    policy = adapted(make_policy())
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    with torch.no_grad():
        evaluated = loss_of(policy.eval(), batch)
    torch.testing.assert_close(evaluated, loss_of(policy, batch).detach(), rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_activations_that_are_computed_again_change_no_bit(
    make_policy: Callable[..., VlaPolicy], batch: Batch, kind: str
) -> None:
    gradients = []
    for keep in ("all", "all_matmuls", "every_second", "none"):
        policy = adapted(make_policy(residual_dropout=0.2), kind, dropout=0.3)
        keep_activations(policy.backbone.blocks, keep)
        torch.manual_seed(2)
        loss_of(policy.train(), batch).backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    for other in gradients[1:]:
        assert all(map(torch.equal, gradients[0], other))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
def test_a_compiled_layer_computes_the_same(make_policy, batch) -> None:
    plain, compiled = adapted(make_policy()), adapted(make_policy())
    compile_blocks(compiled, backend="aot_eager")
    assert trained(compiled, batch, 3) == pytest.approx(trained(plain, batch, 3), rel=1e-5)
    torch._dynamo.reset()


def test_a_policy_can_be_without_contents_where_others_imported_bitsandbytes(
    make_policy, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(import_bitsandbytes().functional.name2qmap, "dynamic")  # as after importing it
    with torch.device("meta"):
        adapted(make_policy())
    assert torch.isfinite(loss_of(adapted(make_policy()), batch))


def test_without_bitsandbytes_a_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r"^backbone\.adapter\.base: 4bit .*pip install 'vlatrack\[scale\]'$"):
        import_bitsandbytes()
    assert "kernels" not in sys.modules


@pytest.mark.slow
@pytest.mark.parametrize("base", ["fp32", "4bit"])
def test_no_kernel_is_fetched_and_nothing_is_said(tmp_path: Path, base: str) -> None:
    """A package `kernels` that says when it is asked for one stands where the real one would."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*a, **b):\n    print('asked the hub')\n")
    script = (
        "import torch, kernels\nfrom torch import nn\nfrom vlatrack.cli.progress import prepare_process\n"
        "prepare_process()\n"
        "from types import SimpleNamespace\nfrom vlatrack.models.backbones.adapter import Adapter, add_adapter\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.blocks = nn.ModuleList([nn.Linear(64, 64)])\n"
        "net = Net(); net.blocks[0] = nn.Sequential(); net.blocks[0].add_module('q_proj', nn.Linear(64, 64))\n"
        f"add_adapter(net, Adapter('lora', 2, 2.0, 0.0, ('q_proj',), '{base}'))\n"
        "import sys\nassert 'bitsandbytes' in sys.modules\nassert sys.modules['kernels'] is kernels\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
