"""From an experiment to a training: its device, optimiser and loop, and what its checkpoints hold."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs

from vlatrack.builders.data import data_warnings
from vlatrack.builders.experiment import Experiment
from vlatrack.builders.optimizer import build_optimizer, build_schedule, check_optimizer, group_rates
from vlatrack.builders.order import build_order
from vlatrack.builders.policy import adapter_of, build_schema
from vlatrack.builders.unfilled import Fill
from vlatrack.data.samples import Encoding, Samples
from vlatrack.errors import SpecError
from vlatrack.metrics.schema import SIMULATION, TRAIN, MetricSchema
from vlatrack.models.backbones.four_bits import import_bitsandbytes
from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import sum_gradients_in_fp32
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import dump_spec
from vlatrack.tracking.privacy import shareable_files
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.contents import TrainingParts
from vlatrack.training.checkpoint.policy import IMAGE_TOKENIZER, SPEC, TEXT_TOKENIZER, PolicyRecord
from vlatrack.training.chips import chip_of
from vlatrack.training.compilation import LENGTH_MULTIPLE, compile_blocks, missing_compiler
from vlatrack.training.distributed import distribute, move_buffers, parallel_shape, process_mesh
from vlatrack.training.early_stopping import EarlyStopping
from vlatrack.training.ema import WeightAverage
from vlatrack.training.float8 import check_float8, use_float8
from vlatrack.training.host_memory import keep_freed_memory
from vlatrack.training.interruption import Interruption
from vlatrack.training.loop import LoopSettings, Training
from vlatrack.training.process_group import ProcessGroup
from vlatrack.training.state import TrainState


def build_accelerator(spec: ExperimentSpec) -> Accelerator:
    """The device and precision to compute with.

    Raises:
        SpecError: train.device is cuda and there is none.
    """
    wanted = spec.train.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise SpecError("train.device: cuda, but torch sees no GPU here; use auto or cpu")
    accelerator = Accelerator(
        cpu=wanted == "cpu",
        mixed_precision="no" if spec.train.precision == "fp32" else "bf16",
        # A weight is used once in a forward pass: its copy in bf16 would stay to the end of it for nothing.
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
    )
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def check_device(spec: ExperimentSpec, device: torch.device) -> None:
    """Check that the device can train with `train.precision`, `train.attention` and `train.compile`, and that
    what stores a base in 4 bits is installed.

    Raises:
        VlatrackError: it cannot, or a package is missing.
    """
    if spec.train.precision == "fp8":
        check_float8(device)
    if spec.train.attention == "flex" and device.type != "cuda":
        raise SpecError("train.attention: flex needs a GPU (FlexAttention has no backward pass on a CPU); use sdpa")
    if spec.train.compile is True and (missing := missing_compiler(device)) is not None:
        raise SpecError(f"train.compile: needs {missing}, which is not on the path; install it, or set it to false")
    if (adapter := adapter_of(spec)) is not None and adapter.base == "4bit":
        import_bitsandbytes()


def compiles_layers(spec: ExperimentSpec, device: torch.device) -> bool:
    """Whether the decoder layers are compiled on this device."""
    if isinstance(spec.train.compile, bool):
        return spec.train.compile
    return device.type == "cuda" and not _has_dora(spec) and missing_compiler(device) is None


def _has_dora(spec: ExperimentSpec) -> bool:
    adapter = adapter_of(spec)
    return adapter is not None and adapter.kind == "dora"  # peft's is not one graph


def check_ranks(spec: ExperimentSpec, group: ProcessGroup) -> None:
    """Check that there are no more processes than samples in a batch, and that `train.parallel` is about this number of
    processes, over which the optimiser's states can be sharded.

    Raises:
        SpecError: one of these does not hold.
        MissingPackageError: the optimiser needs a package.
    """
    if spec.train.batch_size < group.world_size:
        raise SpecError(
            f"train.batch_size: {spec.train.batch_size} samples cannot be dealt out to {group.world_size} processes; "
            "raise it, or start fewer"
        )
    _parallel_shape(spec, group)
    check_optimizer(spec, group.world_size)


def check_processes(spec: ExperimentSpec, group: ProcessGroup) -> None:
    """Check, beside `check_ranks`, that there are no more processes than GPUs on this machine, and that GPUs can
    exchange weights.

    Raises:
        SpecError: one of these does not hold.
        MissingPackageError: the optimiser needs a package.
    """
    check_ranks(spec, group)
    gpus = 0 if spec.train.device == "cpu" else torch.cuda.device_count()
    if 0 < gpus < group.local_world_size:
        raise SpecError(
            f"train.device: {spec.train.device}, but torch sees {gpus} GPUs for {group.local_world_size} processes; "
            "start one for each GPU, or use cpu"
        )
    if gpus and group.world_size > 1 and not torch.distributed.is_nccl_available():
        raise SpecError(
            f"train.device: {spec.train.device}, but this build of torch has no NCCL, over which GPUs exchange "
            "weights; install another build, or use cpu"
        )


def _parallel_shape(spec: ExperimentSpec, group: ProcessGroup) -> tuple[int, int]:
    parallel = spec.train.parallel
    return parallel_shape(group.world_size, group.per_machine, shard=parallel.shard, replicate=parallel.replicate)


def keeps_on_host(spec: ExperimentSpec) -> bool:
    """Whether parameters, gradients and optimiser states stay in the host's memory."""
    return spec.train.memory.offload == "parameters"


def home_of(spec: ExperimentSpec, device: torch.device) -> torch.device:
    """Where the parameters are of a policy that computes on ``device``."""
    return torch.device("cpu") if keeps_on_host(spec) else device


def build_training(
    experiment: Experiment,
    policy: VlaPolicy,
    samples: Samples,
    accelerator: Accelerator,
    group: ProcessGroup,
    interruption: Interruption,
    callbacks: Sequence[Callback] = (),
    *,
    fill: Fill | None = None,
    early_stopping: EarlyStopping | None = None,
) -> Training:
    """A policy with its optimiser, schedule and loop settings. All ranks call this: it leaves each of them its part of
    the policy. ``callbacks`` are those of the main process; ``fill`` is for an unfilled policy. One process alone that
    `keeps_on_host` calls this inside of `process_group_of_one`.

    Raises:
        VlatrackError: the optimiser or its schedule cannot have these settings.
    """
    spec, optim, train = experiment.spec, experiment.spec.optim, experiment.spec.train
    order = build_order(experiment, samples)
    schedule = build_schedule(spec, order.steps)
    if train.precision == "fp8":
        use_float8(policy.backbone.blocks)
    if train.attention == "flex":
        policy.use_flex_attention()
    offloads = keeps_on_host(spec)
    mesh = process_mesh(_parallel_shape(spec, group), accelerator.device, offloads=offloads)
    distribute(policy, mesh, offload=offloads)
    if fill is not None:
        fill(home_of(spec, accelerator.device))
        move_buffers(policy, accelerator.device)
    if train.memory.gradients == "fp32" and train.micro_batch is not None:
        sum_gradients_in_fp32(policy)
    compiled = compiles_layers(spec, accelerator.device)
    if compiled:
        compile_blocks(policy)
    chip = chip_of(accelerator.device)
    return Training(
        policy=policy,
        optimizer=build_optimizer(spec, policy),
        schedule=schedule,
        samples=samples,
        order=order,
        settings=LoopSettings(
            epochs=train.epochs,
            max_steps=train.max_steps,
            micro_batch=train.micro_batch,
            clip_grad=optim.clip_grad,
            log_every=spec.tracking.log_every,
            workers=min(train.workers, os.cpu_count() or 1),  # more than there are cores would only compete
            group_by_length=train.group_by_length,
            length_multiple=LENGTH_MULTIPLE if compiled else 1,
            non_finite=train.non_finite,
            max_rollbacks=train.max_rollbacks,
            save_every_epochs=train.checkpoint.every_epochs,
            save_every_steps=train.checkpoint.every_steps,
            best_metric=train.checkpoint.best_metric,
            gradient_share_every=spec.loss.gradient_share_every,
            group_rates=group_rates(spec),
        ),
        accelerator=accelerator,
        group=group,
        interruption=interruption,
        schema=build_schema(spec),
        callbacks=callbacks,
        early_stopping=early_stopping,
        average=None if train.ema is None else WeightAverage(policy, train.ema.decay),
        peak_flops=None if chip is None else chip.flops,
    )


def build_early_stopping(spec: ExperimentSpec, schema: MetricSchema) -> EarlyStopping | None:
    """What ends the training before its last epoch; None if nothing does."""
    early = spec.train.early_stopping
    if early is None:
        return None
    return EarlyStopping(early.metric or spec.train.checkpoint.best_metric, patience=early.patience, schema=schema)


def build_training_parts(
    experiment: Experiment, training: Training, encoding: Encoding, image_tokenizer: Path
) -> TrainingParts:
    """What the checkpoints of a training save; ``image_tokenizer`` is the folder of the run's image tokenizer."""
    sizes = experiment.image_sizes()

    def write_policy_files(folder: Path) -> None:
        (folder / SPEC).write_text(dump_spec(experiment.spec))
        encoding.text.save(folder / TEXT_TOKENIZER)
        _link_files(image_tokenizer, folder / IMAGE_TOKENIZER)
        record = PolicyRecord(
            folder,
            spec_file=folder / SPEC,
            bins=experiment.spec.tokenizer.bins,
            norm_stats=experiment.norm_stats,
            geometry=training.policy.backbone.geometry(),
            fingerprints=experiment.fingerprints,
            lineage=experiment.lineage,
            text_tokenizer=folder / TEXT_TOKENIZER,
            image_tokenizer=folder / IMAGE_TOKENIZER,
            policy_sha256="",  # not known before the files are written
            image_sizes=sizes,
        )
        record.write(folder, experiment_hash=experiment.hash, backbone_kind=experiment.spec.backbone.kind)

    averages = {} if training.average is None else training.average.tensors()
    return TrainingParts(
        training.policy,
        training.optimizer,
        training.group,
        write_policy_files,
        averages,
        training.accelerator.device,
    )


def training_warnings(experiment: Experiment, training: Training, state: TrainState) -> list[str]:
    """Settings and data that are allowed but probably not intended, one line each, for a training that starts at
    ``state``; those of the data for the main process alone."""
    spec, steps = experiment.spec, training.total_steps
    found = []
    if training.group.is_main_process:
        with shareable_files():
            found += data_warnings(spec, experiment.splits, experiment.norm_stats)
    if experiment.continues and experiment.stored is not None and spec.optim.schedule != "constant":
        epochs = cast(int, experiment.stored.settings["train.epochs"])
        done, per_epoch = state.step / training.steps_per_epoch, training.steps_per_epoch
        now, before = training.schedule.at(done), build_schedule(spec, per_epoch, epochs=epochs).at(done)
        if epochs != spec.train.epochs and (spec.optim.schedule == "cosine" or now != before):
            found.append(
                f"train.epochs = {spec.train.epochs} spans the {spec.optim.schedule} anew, which spanned {epochs}: the "
                f"learning rate goes on at {now:.3g} instead of {before:.3g}"
            )
    device = training.accelerator.device
    wanted = spec.train.compile == "auto" and device.type == "cuda" and not _has_dora(spec)
    if wanted and (missing := missing_compiler(device)) is not None:
        found.append(
            f"train.compile = auto leaves the layers uncompiled, which makes a step slower: {missing} is not on the "
            "path; install it"
        )
    whole = training.steps_per_epoch * spec.train.epochs
    warm_up = training.schedule.warmup_epochs * training.steps_per_epoch
    if steps <= warm_up:
        found.append(
            f"train.max_steps = {steps} ends the training inside the warm-up of {warm_up:.0f} steps: the learning "
            "rate never reaches optim.lr"
        )
    elif steps < whole and spec.optim.schedule != "constant":
        last = training.schedule.at((steps - 1) / training.steps_per_epoch)
        found.append(
            f"train.max_steps = {steps} ends the training before the {spec.optim.schedule}, which spans the {whole} "
            f"steps of train.epochs = {spec.train.epochs}: the last learning rate is {last:.2g}, not "
            f"{spec.optim.min_lr:.2g}"
        )
    measured = [TRAIN, *(name for name in experiment.splits if name != TRAIN and spec.evaluate.open_loop is not None)]
    measured_prefixes = (SIMULATION, *(f"{name}_" for name in measured))
    best, early = spec.train.checkpoint.best_metric, training.early_stopping
    why = "is never measured (data.val_… or evaluate.open_loop is null)"
    if not best.startswith(measured_prefixes):
        found.append(f"train.checkpoint.best_metric = {best} {why}; the best checkpoint is the last one")
    if early is not None and not early.metric.startswith(measured_prefixes):
        found.append(f"train.early_stopping: {early.metric} {why}; the training goes on to its last epoch")
    return found


def _link_files(source: Path, target: Path) -> None:
    """Hard-link the files of a folder, which never change, into a new one; copy them where links are not possible."""
    target.mkdir()
    for file in source.iterdir():
        try:
            os.link(file, target / file.name)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(file, target / file.name)
