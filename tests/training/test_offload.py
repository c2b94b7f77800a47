"""Parameters, gradients and optimiser states in the host's memory: the same steps, whatever else is chosen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from arithmetic import Arithmetic
from program import TOY
from test_distributed import furthest, trained
from test_sharded_optimizers import outcomes
from tiny_policy import LAYOUT, vla_row, world_model_row
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor
from training_rank import make_policy

from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import store_parameters, sum_gradients_in_fp32
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tokens.batch import collate
from vlatrack.training.compact_adamw import CompactAdamW
from vlatrack.training.distributed import distribute, local_part, process_mesh
from vlatrack.training.ema import WeightAverage
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.torch_process_group import process_group_of_one

CPU = torch.device("cpu")


@pytest.fixture
def alone() -> Iterator[None]:
    """What one process needs to offload."""
    with process_group_of_one(needed=True):
        yield


def offloading(policy: VlaPolicy, device: torch.device = CPU) -> VlaPolicy:
    distribute(policy, process_mesh((1, 1), device, offloads=True), offload=True)
    return policy


def two_steps(policy: VlaPolicy, optimizer: torch.optim.Optimizer, arithmetic: Any) -> list[Tensor]:
    """Losses and gradient norms of steps with two micro batches, the last of which is not finite; then the weights and
    the average of them."""
    rows, average, results = np.random.default_rng(0), WeightAverage(policy, 0.9), []
    batches = [collate([vla_row(rows, 5), world_model_row(rows)], LAYOUT), collate([vla_row(rows, 3)], LAYOUT)]
    counted = [policy.loss_counts(batch) for batch in batches]
    counts = {name: sum(each[name] for each in counted) for name in counted[0]}
    for step, lr in enumerate((1e-2, 1e-2)):
        result = train_step(
            policy.train(),
            optimizer,
            batches,
            {name: count * (1 if step == 0 else 1e-45) for name, count in counts.items()},
            accelerator=arithmetic,
            group=ProcessGroup(),
            lr=lr,
            clip_grad=0.1,
            trains_head=True,
            step=step,
        )
        average.update(step + 1, result.finite)
        results += [result.loss, result.grad_norm, result.finite]
    tensors = [*results, *policy.parameters(), *average.tensors().values()]
    return [local_part(tensor).cpu() for tensor in tensors]


def test_a_policy_on_the_host_takes_the_steps_of_one_that_is_not_to_the_bit(alone: None) -> None:
    both = []
    for policy in (make_policy(set()), offloading(make_policy(set()))):
        optimizer = adamw(policy.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
        both.append(two_steps(policy, optimizer, Arithmetic(bf16=False)))
    assert both[0][2]
    assert not both[0][5]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_each_layer_is_offloaded_by_torchs_own_policy(alone: None) -> None:
    policy = offloading(make_policy(set()))
    wrapped = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    assert len(wrapped) == len(policy.backbone.blocks) + 1
    for module in wrapped:
        group = module._get_fsdp_state()._fsdp_param_group  # its own name; nothing public tells
        assert isinstance(group.offload_policy, CPUOffloadPolicy)
        assert all(parameter.offload_to_cpu for parameter in group.fsdp_params)
    assert all(isinstance(parameter, DTensor) for parameter in policy.parameters())

    plain = make_policy(set())
    distribute(plain, process_mesh((1, 1), CPU))
    assert not isinstance(plain, FSDPModule)


def test_rounding_on_the_host_leaves_the_generators_of_the_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(7)
    assert seeded == [7]
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    CompactAdamW([parameter], rounding="stochastic", states="bf16", **settings).step()
    assert seeded == [7]


def summed(*, fp32: bool, offload: bool, at_once: int) -> list[Tensor]:
    """The gradients of a bf16 policy, summed over 32 micro batches, or one after the other in float64."""
    policy, rows = make_policy(set()), np.random.default_rng(0)
    store_parameters(policy, torch.bfloat16)
    if offload:
        offloading(policy)
    if fp32:
        sum_gradients_in_fp32(policy)
    batches = [collate([vla_row(rows, 3 + row % 5)], LAYOUT) for row in range(32)]
    counts = policy.loss_counts(collate([vla_row(rows, 3)] * 32, LAYOUT))
    sums = [torch.zeros((), dtype=torch.float64) for _ in policy.parameters()]
    for number, batch in enumerate(batches, start=1):
        with Arithmetic(bf16=True).autocast():
            output = policy(batch)
        policy.loss(output, counts).backward()
        if number % at_once == 0:
            sums = [sum_ + local_part(p.grad).double() for sum_, p in zip(sums, policy.parameters(), strict=True)]
            policy.zero_grad(set_to_none=True)
    return sums


def error(sums: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The norm of the difference, relative to that of the gradient."""
    pairs = list(zip(sums, expected, strict=True))
    return float(
        torch.stack([(one - other).norm() for one, other in pairs]).norm()
        / torch.stack([other.norm() for other in expected]).norm()
    )


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_gradients_of_many_micro_batches_in_bf16_add_up_exactly_where_they_are_summed_in_fp32(
    alone: None, offload: bool
) -> None:
    expected = summed(fp32=False, offload=offload, at_once=1)
    assert error(summed(fp32=True, offload=offload, at_once=32), expected) < 1e-6
    assert 0.002 < error(summed(fp32=False, offload=offload, at_once=32), expected) < 0.02


@pytest.mark.slow
def test_two_processes_that_offload_train_as_one_that_does_not(tmp_path: Path) -> None:
    (expected,) = trained(tmp_path, 1, "float64").values()
    assert trained(tmp_path, None, "float64,offloaded") == {"float64,offloaded": expected}
    ways = ["float64,offloaded", "float64,offloaded,none,compiled", "float64,offloaded,replicate=2"]
    for way, steps in trained(tmp_path, 2, *ways).items():
        loss, norm = furthest(steps, expected)
        assert (loss < 1e-7, norm < 1e-12) == (True, True), (way, loss, norm)


@pytest.mark.slow
def test_two_processes_that_offload_round_and_resume_as_those_that_do_not(tmp_path: Path) -> None:
    found = outcomes(tmp_path, 2, *(f"{case}{how}" for case in ("stochastic", "kahan") for how in ("", ",offloaded")))
    for case in ("stochastic", "kahan"):
        assert found[f"{case},offloaded"]["losses"] == found[case]["losses"]
        assert found[f"{case},offloaded"]["resumed"]


BF16 = ("train.precision=bf16", "train.memory.parameters=bf16")
WAYS = {
    "fp32": ("train.ema={decay: 0.9}", "train.micro_batch=2", "train.memory.keep=none"),
    "stochastic rounding": (*BF16, "loss.gradient_share_every=1"),
    "gradients in fp32": (*BF16, "train.memory.gradients=fp32", "train.micro_batch=2"),
    "8 bits": (*BF16, "train.memory.optimizer_states=8bit"),
    "adapters": ("backbone.adapter={kind: lora, base: bf16}", "train.precision=bf16"),
}


@pytest.fixture
def _any_precision() -> Iterator[None]:
    """accelerate keeps the precision that a process began with."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def files_of(run: Path) -> list[bytes]:
    """What a run has come to: weights, states, and metrics of its evaluation."""
    last = run / "checkpoints" / "step-00000004"
    files = [last / "policy.safetensors", last / "training" / "states.safetensors", run / "log_eval_ind.txt"]
    return [file.read_bytes() for file in files]


def run_of(folder: Path, words: Sequence[str]) -> Path:
    quick = ["train.epochs=1", "train.batch_size=32", "train.checkpoint.every_steps=2", "train.checkpoint.keep_last=9"]
    few = ["evaluate.open_loop.max_samples=8", "data.val_ood=null", "train.max_steps=4"]
    return run_experiment(load_spec(TOY, [*quick, *few, *words]), runs=folder).path


@pytest.mark.slow
@pytest.mark.usefixtures("_any_precision")
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_offloads_is_the_run_that_does_not_and_resumes_bitwise_with_and_without(
    tmp_path: Path, way: str
) -> None:
    expected = files_of(run_of(tmp_path / "plain", WAYS[way]))
    run = run_of(tmp_path / "offloading", [*WAYS[way], "train.memory.offload=parameters"])
    assert files_of(run) == expected
    for offload in ("parameters", "none"):
        resume_run(run, checkpoint="step-00000002", overrides=[f"train.memory.offload={offload}"])
        assert files_of(run)[:2] == expected[:2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("_any_precision")
def test_on_a_gpu_the_parameters_are_on_the_host_and_the_steps_are_those_without_offloading(alone: None) -> None:
    device, both = torch.device("cuda", torch.cuda.current_device()), []
    for offload in (False, True):
        policy = make_policy(set())
        store_parameters(policy, torch.bfloat16)
        policy = offloading(policy, device) if offload else policy.to(device)
        assert {parameter.device.type for parameter in policy.parameters()} == {"cpu" if offload else "cuda"}
        assert all(local_part(parameter).is_pinned() for parameter in policy.parameters() if offload)
        assert policy.centres.device == device
        optimizer = CompactAdamW(
            policy.parameters(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, rounding="kahan", states="bf16"
        )
        both.append(two_steps(policy, optimizer, Accelerator(mixed_precision="bf16")))
        states = [value for state in optimizer.state.values() for value in state.values()]
        assert {value.device.type for value in states} == {"cpu" if offload else "cuda"}
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-3, equal_nan=True)
