"""What training steps of an experiment cost on this machine, beside the least that its chip would need for them.

The training is the experiment's own, with random weights and rows as long as its longest sample: it needs neither data
nor pretrained weights. Metrics go into the journal of a run that is thrown away, and no further.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlatrack.bench.floor import Floor, step_floor
from vlatrack.bench.memory import longest_samples, sizes_of
from vlatrack.bench.steps import NoCheckpoints
from vlatrack.builders.experiment import Experiment
from vlatrack.builders.policy import build_policy
from vlatrack.builders.training import (
    build_accelerator,
    build_training,
    check_device,
    check_processes,
    home_of,
    keeps_on_host,
)
from vlatrack.data.digests import user_cache
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import SpecError
from vlatrack.metrics.schema import TRAIN
from vlatrack.models.backbones.four_bits import count_weights, weights_of
from vlatrack.models.policy import VlaPolicy
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.bins import ValueRange
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence
from vlatrack.tokens.text import ByteTokenizer
from vlatrack.tracking.run import TrackedRun
from vlatrack.training.callback import Callback
from vlatrack.training.chips import chip_of
from vlatrack.training.determinism import deterministic_algorithms
from vlatrack.training.distributed import local_part
from vlatrack.training.flops import PolicySizes, batch_flops
from vlatrack.training.interruption import Interruption
from vlatrack.training.loop import Training
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState
from vlatrack.training.throughput import SPEEDS
from vlatrack.training.torch_process_group import process_group_of_one


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one process, on its device unless they are offloaded to the host."""

    weights: int
    gradients: int
    optimizer_states: int
    peak: int | None  # on the device; None on a CPU, which does not tell
    offloaded: bool = False  # whether weights, gradients and states are on the host

    @property
    def activations(self) -> int | None:
        """Everything else at the peak."""
        held = 0 if self.offloaded else self.weights + self.gradients + self.optimizer_states
        return None if self.peak is None else self.peak - held


@dataclass(frozen=True)
class TrainingCost:
    """Means over the measured steps, after as many that were not measured."""

    steps: int
    device: str
    processes: int
    layers: int
    parameters: int
    trainable: int
    rows: int  # of a step, over all processes
    tokens: int  # of the longest row
    longest_row: str  # where that length comes from
    flops: float  # of a step, over all processes
    speeds: Mapping[str, float]  # by the names of SPEEDS
    memory: MemoryParts
    floor: Floor | None  # None for a chip whose limits are not known

    @property
    def ratio(self) -> float | None:
        """Step time / floor."""
        return None if self.floor is None else self.speeds["step_time_s"] / self.floor.total_s


def measure_training(
    spec: ExperimentSpec,
    *,
    steps: int,
    layers: int | None = None,
    group: ProcessGroup | None = None,
    callback: Callback | None = None,
) -> TrainingCost | None:
    """Train `spec` for twice as many steps and measure the second half; None on all ranks but the main process.

    Args:
        layers: of the backbone that are kept; None: all.
        callback: told of the steps, on the main process.

    Raises:
        VlatrackError: the sizes of the backbone are not known, it has fewer layers, or the device is not there.
    """
    group = group or ProcessGroup()
    check_processes(spec, group)
    accelerator = build_accelerator(spec)
    check_device(spec, accelerator.device)
    experiment = _without_data(_bench_settings(spec, steps))
    policy = _random_policy(experiment, layers, home_of(spec, accelerator.device))
    group.broadcast_weights(policy)
    sequences, longest_row = longest_samples(
        spec, experiment.source.text or ByteTokenizer(policy.layout), policy.layout
    )
    samples = _RepeatedRows(sequences, 2 * steps * spec.train.batch_size, policy.layout)
    record = _LastRecord()
    callbacks = [record, *([] if callback is None else [callback])] if group.is_main_process else []
    with (
        Interruption(group) as interruption,
        _journal(spec, record, group),
        process_group_of_one(needed=keeps_on_host(spec) and group.world_size == 1),
        deterministic_algorithms(wanted=spec.train.deterministic),
    ):
        training = build_training(experiment, policy, samples, accelerator, group, interruption, callbacks)
        training.run(TrainState(), NoCheckpoints(), lambda state: {})
    if not group.is_main_process:
        return None
    batch = collate([samples[number] for number in range(spec.train.batch_size)], policy.layout)
    sizes, on_gpu = PolicySizes.of(policy), accelerator.device.type == "cuda"
    return TrainingCost(
        steps=steps,
        device=torch.cuda.get_device_name(accelerator.device) if on_gpu else "CPU",
        processes=group.world_size,
        layers=sizes.layers,
        parameters=count_weights(policy),
        trainable=sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad),
        rows=batch.rows,
        tokens=batch.input_ids.shape[1],
        longest_row=longest_row,
        flops=batch_flops(sizes, batch),
        speeds={name: record.metrics[f"{TRAIN}_{name}"] for name in SPEEDS if f"{TRAIN}_{name}" in record.metrics},
        memory=_memory_parts(training),
        floor=_floor(training, batch),
    )


def measure_without_deterministic(
    spec: ExperimentSpec,
    *,
    steps: int,
    layers: int | None = None,
    group: ProcessGroup | None = None,
    callback: Callback | None = None,
) -> float | None:
    """The step time that `measure_training` finds without `train.deterministic`, in seconds; None on all ranks but the
    main process, and if the experiment does not ask for it."""
    if not spec.train.deterministic:
        return None
    train = spec.train.model_copy(update={"deterministic": False})
    plain = spec.model_copy(update={"train": train})
    cost = measure_training(plain, steps=steps, layers=layers, group=group, callback=callback)
    return None if cost is None else cost.speeds["step_time_s"]


def _bench_settings(spec: ExperimentSpec, steps: int) -> ExperimentSpec:
    train = spec.train.model_copy(update={"max_steps": 2 * steps, "profile": None, "non_finite": "halt"})
    tracking = spec.tracking.model_copy(update={"log_every": steps, "backends": ()})
    loss = spec.loss.model_copy(update={"gradient_share_every": None})
    return spec.model_copy(update={"train": train, "tracking": tracking, "loss": loss})


def _without_data(spec: ExperimentSpec) -> Experiment:
    numbers = spec.action_head.action_dim
    stats = NormStats(ValueRange((-1.0,) * numbers, (1.0,) * numbers), None)
    return Experiment(spec, {}, stats, sizes_of(spec), None, False, {}, TokenStore(user_cache() / "data"))


def _random_policy(experiment: Experiment, layers: int | None, device: torch.device) -> VlaPolicy:
    with device:  # a large one is drawn much faster on a GPU, and need not fit into the host's memory
        policy = build_policy(experiment.spec, experiment.source)
    blocks = policy.backbone.blocks
    if layers is not None:
        if not 0 < layers <= len(blocks):
            raise SpecError(f"--layers {layers}: the backbone has {len(blocks)}")
        del blocks[layers:]
    if device.type == "cuda":  # layers that are gone do not count
        torch.cuda.reset_peak_memory_stats(device)
    return policy.to(device)


class _RepeatedRows:
    """The same few samples over and over, as `Samples`."""

    def __init__(self, rows: list[TokenSequence], count: int, layout: TokenLayout) -> None:
        self._rows, self._count, self._layout = rows, count, layout

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> TokenSequence:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._rows[number % len(self._rows)]

    def batch(self, numbers: Iterable[int], *, length_multiple: int = 1) -> Batch:
        return collate([self[number] for number in numbers], self._layout, length_multiple=length_multiple)

    def lengths_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([len(self[number].input_ids) for number in numbers.tolist()], np.int64)

    def describe(self, number: int) -> dict[str, str | int]:
        return {"number": number}


class _LastRecord(Callback):
    """Keeps the last metrics, and logs all of them as a run does."""

    def __init__(self) -> None:
        self.metrics: Mapping[str, float] = {}
        self.tracked: TrackedRun | None = None

    def on_log(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        assert self.tracked is not None, "the main process has begun its run"
        self.tracked.log(metrics, step=state.step)
        self.metrics = metrics


@contextmanager
def _journal(spec: ExperimentSpec, record: _LastRecord, group: ProcessGroup) -> Iterator[None]:
    if not group.is_main_process:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vlatrack-bench-") as folder:
        run_dir = Path(folder) / "runs" / spec.name / "bench"
        with TrackedRun.start(
            run_dir, uid="bench", name="bench", experiment=spec.name, backends=[], params={}, tags={}
        ) as tracked:
            record.tracked = tracked
            yield


def _memory_parts(training: Training) -> MemoryParts:
    device, policy = training.accelerator.device, training.policy
    states = [value for state in training.optimizer.state.values() for value in state.values()]
    return MemoryParts(
        weights=sum(map(_local_bytes, weights_of(policy))),
        gradients=sum(
            # Those that may have any dtype are summed in fp32.
            4 * local_part(parameter).numel() if parameter.grad_dtype is None else _local_bytes(parameter)
            for parameter in policy.parameters()
            if parameter.requires_grad
        ),
        optimizer_states=sum(_local_bytes(value) for value in states if isinstance(value, Tensor)),
        peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        offloaded=next(policy.parameters()).device != device,
    )


def _floor(training: Training, batch: Batch) -> Floor | None:
    accelerator, policy = training.accelerator, training.policy
    chip = chip_of(accelerator.device)
    if chip is None:
        return None
    half_precision, memory = accelerator.mixed_precision != "no", _memory_parts(training)
    matrices = [weight for weight in policy.parameters() if weight.dim() == 2 and weight.dtype == torch.float32]
    return step_floor(
        PolicySizes.of(policy),
        batch,
        chip,
        processes=training.group.world_size,
        half_precision=half_precision,
        copied=sum(map(_local_bytes, matrices)) if half_precision else 0,
        trained=memory.gradients,
        states=memory.optimizer_states,
    )


def _local_bytes(tensor: Tensor) -> int:
    return local_part(tensor).nbytes
