"""Between two records nothing waits for the device."""

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from program import TOY
from tiny_policy import LAYOUT, vla_row, world_model_row
from torch.utils._python_dispatch import TorchDispatchMode
from training_rank import make_policy

from vlatrack.bench import train
from vlatrack.spec.load import load_spec
from vlatrack.tokens.batch import collate
from vlatrack.training.non_finite import NonFiniteGuard
from vlatrack.training.optimisation import train_step
from vlatrack.training.optimizers import adamw
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.records import PendingRecord
from vlatrack.training.state import TrainState
from vlatrack.training.throughput import Throughput

aten = torch.ops.aten
_WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.unique_dim.default,
    aten._unique2.default,
}


class NothingIsRead(TorchDispatchMode):
    """Fails at an operation that would make a GPU's host wait for a value."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in _WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_step_and_the_opening_of_its_record_read_nothing_from_the_device(precision: str) -> None:
    policy = make_policy(set()).train()
    optimizer = adamw(policy.parameters(), lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    generator = np.random.default_rng(0)
    batches = [collate([vla_row(generator, 5)], LAYOUT), collate([world_model_row(generator)], LAYOUT)]
    counts = policy.loss_counts(collate([vla_row(generator, 5), world_model_row(generator)], LAYOUT))
    throughput, state = Throughput(torch.device("cpu")), TrainState()
    guard = NonFiniteGuard(torch.device("meta"), "halt", ())  # which is no CPU, where it reads each step
    guard._none = guard._count = guard._first = guard._in_a_row = torch.zeros((), dtype=torch.int64)
    accelerator = Accelerator(cpu=True)
    with NothingIsRead(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(2):
            result = train_step(
                policy,
                optimizer,
                batches,
                counts,
                accelerator=accelerator,
                group=ProcessGroup(),
                lr=1e-3,
                clip_grad=1.0,
                trains_head=True,
                enter=throughput.watch.enter,
            )
            state.add_step(result.states)
            guard.note(state, result)
            throughput.count(batches)
        pending = PendingRecord.open(state, result, 1e-3, throughput, guard)
    assert pending.grad_norm == result.grad_norm.item() > 0
    assert pending.states["closs"].count == 2 * counts["closs"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_waits_for_the_device_nor_does_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_step(self: object, state: TrainState) -> None:  # from the third step to the seventh, with the record of one
        torch.cuda.set_sync_debug_mode("error" if 2 <= state.step < 7 else "default")

    monkeypatch.setattr(train._LastRecord, "on_step", on_step)
    spec = load_spec(TOY, ["train.device=cuda", "train.precision=bf16", "train.compile=false"])
    cost = train.measure_training(spec, steps=4)
    assert cost is not None
    assert cost.speeds["step_time_s"] > 0
