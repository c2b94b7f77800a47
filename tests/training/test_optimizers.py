"""The optimisers of ours: what they store, how they round, and that a step that is not finite changes nothing."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.optim import Optimizer

from vlatrack.errors import SpecError
from vlatrack.training.compact_adamw import CompactAdamW, _update_part
from vlatrack.training.eight_bits import levels
from vlatrack.training.muon import MuonWithAdamW
from vlatrack.training.optimizers import GroupSettings, adamw, parameter_groups, prepare_step

COMMON: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(64, 65), (16, 256), (7,), (3, 5)]  # too large for whole blocks, just large enough for them, and small


def compact(parameters: list[nn.Parameter], **chosen: Any) -> CompactAdamW:
    return CompactAdamW(parameters, **{"rounding": None, "states": "fp32", **COMMON, **chosen})


def with_muon(parameters: list[nn.Parameter]) -> MuonWithAdamW:
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    return MuonWithAdamW([{"params": matrices}], [{"params": others}], **COMMON)


OPTIMIZERS: dict[str, tuple[torch.dtype, Callable[[list[nn.Parameter]], Optimizer]]] = {
    "fused": (torch.float32, partial(adamw, **COMMON)),
    "stochastic": (torch.bfloat16, partial(compact, rounding="stochastic", states="bf16")),
    "stochastic, fp32 states": (torch.bfloat16, partial(compact, rounding="stochastic")),
    "kahan": (torch.bfloat16, partial(compact, rounding="kahan", states="bf16")),
    "8bit": (torch.float32, partial(compact, states="8bit")),
    "stochastic, 8bit": (torch.bfloat16, partial(compact, rounding="stochastic", states="8bit")),
    "muon": (torch.float32, with_muon),
}
each_optimizer = pytest.mark.parametrize("kind", OPTIMIZERS)


def parameters_of(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def take_steps(optimizer: Optimizer, numbers: range) -> None:
    """Steps with the gradients that belong to their numbers."""
    for number in numbers:
        generator = torch.Generator().manual_seed(1 + number)
        prepare_step(optimizer, lr=1e-3 / (1 + number), step=number)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        optimizer.step()


def contents(optimizer: Optimizer) -> list[Tensor]:
    """Parameters and states."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [value for parameter in parameters for value in optimizer.state[parameter].values()]
    return [tensor.detach().clone() for tensor in [*parameters, *states]]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@each_optimizer
def test_a_step_that_is_not_finite_changes_neither_parameters_nor_states(kind: str) -> None:
    dtype, make = OPTIMIZERS[kind]
    optimizer: Any = make(parameters_of(dtype))
    take_steps(optimizer, range(2))
    before = contents(optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad.fill_(float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert equal(contents(optimizer), before)
    optimizer.found_inf = torch.zeros(())
    take_steps(optimizer, range(2, 3))
    assert not equal(contents(optimizer), before)


@each_optimizer
def test_the_very_first_step_may_be_one_that_is_not_finite(kind: str) -> None:
    dtype, make = OPTIMIZERS[kind]
    optimizer: Any = make(parameters_of(dtype))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, float("inf"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    optimizer.found_inf = torch.zeros(())
    take_steps(optimizer, range(2))
    unharmed = make(parameters_of(dtype))
    take_steps(unharmed, range(2))
    assert equal(contents(optimizer), contents(unharmed))


@each_optimizer
def test_a_restored_optimizer_goes_on_bitwise_as_if_it_had_never_stopped(kind: str) -> None:
    dtype, make = OPTIMIZERS[kind]
    optimizer = make(parameters_of(dtype))
    take_steps(optimizer, range(3))
    stored = copy.deepcopy(optimizer.state_dict())
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    again = make([nn.Parameter(weight.detach().clone()) for weight in weights])
    again.load_state_dict(stored)
    for one in (optimizer, again):
        take_steps(one, range(3, 6))
    assert equal(contents(again), contents(optimizer))


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("stochastic", "_AdamW", {"bf16_stochastic_round": True}),
        ("8bit", "AdamW8bit", {}),
    ],
)
def test_steps_are_those_of_torchao_to_the_bit(kind: str, name: str, options: dict[str, Any]) -> None:
    torchao = pytest.importorskip("torchao.optim")
    dtype, make = OPTIMIZERS[kind]
    ours = make(parameters_of(dtype))
    theirs = getattr(torchao, name)(parameters_of(dtype), **COMMON, **options)
    with torch.compiler.set_stance("force_eager"):
        for number in range(5):
            for optimizer in (ours, theirs):
                generator = torch.Generator().manual_seed(number)
                for parameter in optimizer.param_groups[0]["params"]:
                    parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            prepare_step(ours, lr=1e-3, step=number)
            ours.step()
            (mixed,) = np.random.SeedSequence([0, number]).generate_state(1, np.uint64)
            torch.manual_seed(int(mixed >> 1))
            theirs.step()
    for one, other in zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_updates_below_a_bf16_ulp_arrive_by_chance_or_by_kahan_and_are_lost_by_rounding_to_nearest() -> None:
    """500 updates of 2e-5 of 1.0, whose neighbours in bf16 are 0.0039 and 0.0078 away."""
    moved = {}
    bf16 = torch.bfloat16
    for rounding, dtype in [(None, torch.float32), (None, bf16), ("stochastic", bf16), ("kahan", bf16)]:
        parameter = nn.Parameter(torch.ones(500, dtype=dtype))
        optimizer = compact([parameter], rounding=rounding, weight_decay=0.0)
        for number in range(500):
            prepare_step(optimizer, lr=2e-5, step=number)
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        moved[rounding, dtype] = 1 - parameter.detach().double().mean().item()
    assert moved[None, torch.float32] == pytest.approx(0.01, rel=2e-3)
    assert moved[None, bf16] == 0
    assert moved["stochastic", bf16] == pytest.approx(0.01, rel=0.05)
    assert moved["kahan", bf16] == pytest.approx(0.01, abs=0.002)  # half an ulp


def test_what_is_drawn_depends_on_seed_and_step_and_leaves_the_global_generator_alone() -> None:
    def moved(**chosen: int) -> Tensor:
        parameter = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = compact([parameter], rounding="stochastic", seed=chosen.get("seed", 0))
        parameter.grad = torch.ones_like(parameter)
        prepare_step(optimizer, lr=1e-3, step=chosen.get("step", 0))
        before = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
        return parameter.detach()

    assert torch.equal(moved(), moved())
    assert not torch.equal(moved(), moved(seed=1))
    assert not torch.equal(moved(), moved(step=1))


def test_parameters_that_are_updated_in_parts_are_as_those_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for at_once in (1 << 20, 1 << 10):
        monkeypatch.setattr(CompactAdamW, "at_once", at_once)
        optimizer = compact(parameters_of(torch.float32), states="8bit")
        take_steps(optimizer, range(3))
        made.append(contents(optimizer))
    assert equal(*made)


@pytest.mark.slow
@pytest.mark.parametrize("eight_bits", [False, True])
def test_one_compiled_graph_serves_parameters_of_every_length_and_each_learning_rate(eight_bits: bool) -> None:
    counter = CompileCounter()
    compiled = torch.compile(_update_part, backend=counter, fullgraph=True, dynamic=True)
    of_codes = {name: levels(torch.device("cpu"), signed=name == "exp_avg") for name in ("exp_avg", "exp_avg_sq")}
    for length in (512, 4096, 768):
        tensors = {"parameter": torch.ones(length).bfloat16(), "gradient": torch.ones(length).bfloat16()}
        for name in of_codes:
            if eight_bits:
                tensors[f"{name}_codes"] = torch.zeros(length, dtype=torch.uint8)
                tensors[f"{name}_scale"] = torch.zeros(length // 256)
            else:
                tensors[name] = torch.zeros(length)
        lr = torch.tensor(1 / length)
        taken = torch.tensor(True)
        compiled(tensors, of_codes, torch.ones(()), taken, lr, lr * 0.1, (0.9, 0.95), 1e-8, stochastic=True)
    assert counter.frame_count == 1


def test_states_take_what_they_say() -> None:
    large = nn.Parameter(torch.zeros(256, 1024, dtype=torch.bfloat16))
    bytes_of = {}
    for kind in OPTIMIZERS:
        large.grad = torch.zeros_like(large)
        optimizer = OPTIMIZERS[kind][1]([large])
        optimizer.step()
        states = [value for value in optimizer.state[large].values() if value.numel() > 1]
        bytes_of[kind] = sum(value.numel() * value.element_size() for value in states) / large.numel()
    assert bytes_of == {
        "fused": 4,  # torch's AdamW stores the dtype of the parameter
        "stochastic": 4,
        "stochastic, fp32 states": 8,
        "kahan": 6,
        "8bit": 2 + 2 * 4 / 256,
        "stochastic, 8bit": 2 + 2 * 4 / 256,
        "muon": 2,
    }


def test_a_parameter_belongs_to_the_first_group_that_matches_it_and_follows_the_schedule_in_proportion() -> None:
    policy = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2))
    settings = [
        GroupSettings(("1.*",), lr=1e-2, weight_decay=0.0),
        GroupSettings(("*.bias",), lr=1e-3, weight_decay=0.5),
    ]
    optimizer = adamw(parameter_groups(policy, settings, lr=1e-3), **COMMON)
    prepare_step(optimizer, lr=5e-4, step=0)
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    found = [
        ([names[id(parameter)] for parameter in group["params"]], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]
    assert found == [
        (["1.weight", "1.bias"], 5e-3, 0.0),
        (["0.bias", "2.bias"], 5e-4, 0.5),
        (["0.weight", "2.weight"], 5e-4, 0.1),
    ]


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["action_heat.*"], "optim.groups.0.match: 'action_heat.*' matches no parameter (there are action_head.*"),
        (
            ["*", "action_head.*"],
            "optim.groups.1.match: all that 'action_head.*' matches belongs to an earlier pattern",
        ),
    ],
)
def test_a_pattern_without_parameters_is_one_line_with_close_names(patterns: list[str], told: str) -> None:
    policy = nn.ModuleDict({"backbone": nn.Linear(2, 2), "action_head": nn.Linear(2, 2)})
    groups = [GroupSettings((pattern,), lr=1.0, weight_decay=0.0) for pattern in patterns]
    with pytest.raises(SpecError) as caught:
        parameter_groups(policy, groups, lr=1.0)
    assert str(caught.value).startswith(told)
    assert len(str(caught.value).splitlines()) == 1
