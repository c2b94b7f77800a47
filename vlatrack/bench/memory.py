"""The memory that an experiment's training needs on each GPU, from its spec: no GPU, no data, no pretrained weights."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from vlatrack.builders.optimizer import build_optimizer, check_optimizer
from vlatrack.builders.policy import backbone_factory, build_policy
from vlatrack.data.episodes import Episode
from vlatrack.data.samples import Encoding, SampleSet
from vlatrack.data.store.episode_table import EpisodeList
from vlatrack.data.store.image_codes import ImageCodes
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.models.backbones.base import BackboneSource
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.run import initial_policy
from vlatrack.spec.data import sources_of
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import AdapterSpec, CustomBackboneSpec, ExplicitRanges
from vlatrack.spec.training import MemorySpec
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.bins import Bins, ValueRange
from vlatrack.tokens.layout import PIXELS_PER_CODE, TokenLayout
from vlatrack.tokens.prompts import VLA_PROMPT, WORLD_MODEL_PROMPT, Ids, TokenSequence
from vlatrack.tokens.text import ByteTokenizer, TextTokenizer
from vlatrack.training.distributed import parallel_shape
from vlatrack.training.memory import MemoryPrediction, StepSettings, predict_memory

CUDA_BYTES = 1 << 30
"""Set aside on a GPU for the CUDA context, and for what its kernels and its allocator need beyond the tensors."""
INSTRUCTION_CHARACTERS, STATE_NUMBERS = 128, 16
"""Assumed of the longest instruction and of a state without explicit ranges: only the data would tell."""
_ON_HOST = "train.memory.offload=parameters"
_WORDS = "put the red block that lies behind the open drawer on the blue plate and then go back to the start; "


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a training, each with one process; every machine has as many."""

    on_each_machine: int = 1
    machines: int = 1

    @property
    def all(self) -> int:
        return self.on_each_machine * self.machines


ONE_GPU = Gpus()


@dataclass(frozen=True)
class LongestStep:
    """What one process does in the optimiser step that needs most memory: every row is as long as rows get."""

    build: Callable[[], VlaPolicy]
    batch: Batch  # one of the micro batches
    micro_batches: int
    settings: StepSettings
    longest_row: str  # where the number of tokens comes from


@dataclass(frozen=True)
class TrainingMemory:
    """A prediction for each GPU, and what it assumes."""

    prediction: MemoryPrediction
    shape: tuple[int, int]  # copies of the policy, and GPUs over which each of them is sharded
    micro_batches: int  # of one optimiser step
    longest_row: str  # where the number of tokens comes from

    @property
    def on_gpu(self) -> int:
        """Bytes that a GPU has to have."""
        return self.prediction.peak.total + CUDA_BYTES


@dataclass(frozen=True)
class Remedy:
    """Overrides of an experiment with which it fits."""

    words: tuple[str, ...]
    memory: TrainingMemory

    @property
    def takes_long(self) -> bool:
        """Whether each layer crosses to the GPU, and its gradients back, in each micro batch, and a CPU optimises."""
        return _ON_HOST in self.words


def predict_training_memory(spec: ExperimentSpec, gpus: Gpus = ONE_GPU, *, extrapolate: bool = True) -> TrainingMemory:
    """Predict what each of the processes needs that train ``spec``, in eager code.

    Args:
        extrapolate: false follows every decoder layer instead of a few of them.

    Raises:
        VlatrackError: the sizes of the backbone are not known here, no sample fits into `backbone.max_seq_len`, there
            are more GPUs than samples, `train.parallel` is about another number of them, or a custom class cannot be
            used.
    """
    step = step_of(spec, gpus)
    # The layers of a custom backbone may differ from one another.
    alike = not isinstance(spec.backbone, CustomBackboneSpec)
    prediction = predict_memory(step.build, step.batch, step.settings, extrapolate=extrapolate and alike)
    return TrainingMemory(prediction, step.settings.shape, step.micro_batches, step.longest_row)


def step_of(spec: ExperimentSpec, gpus: Gpus = ONE_GPU) -> LongestStep:
    """The step whose memory is predicted. Raises as ``predict_training_memory``."""
    train, parallel = spec.train, spec.train.parallel
    check_optimizer(spec, gpus.all)
    if train.batch_size < gpus.all:
        raise SpecError(
            f"train.batch_size: {train.batch_size} samples cannot be dealt out to {gpus.all} GPUs; raise it"
        )
    source, rows = sizes_of(spec), _rows(spec, gpus)
    with torch.device("meta"):
        layout = source.build().layout
    samples, longest_row = longest_samples(spec, source.text or ByteTokenizer(layout), layout)
    # Kinds in equal parts, as in the training's mixture but for the ends of episodes.
    batch = collate([samples[row % len(samples)] for row in range(rows)], layout)
    micro_batches = -(-_samples(spec, gpus) // rows)
    settings = StepSettings(
        optimizer=partial(build_optimizer, _without_groups(spec)),
        clip_grad=spec.optim.clip_grad,
        bf16=train.precision != "fp32",
        accumulates=micro_batches > 1,
        shape=parallel_shape(gpus.all, gpus.on_each_machine, shard=parallel.shard, replicate=parallel.replicate),
        offloads=train.memory.offload == "parameters",
        averages=train.ema is not None,
        fp32_gradients=train.memory.gradients == "fp32" and train.micro_batch is not None,
    )
    return LongestStep(
        partial(build_policy, _without_groups(spec), source), batch, micro_batches, settings, longest_row
    )


def remedies(load: Callable[[Sequence[str]], ExperimentSpec], limit: int, gpus: Gpus = ONE_GPU) -> Iterator[Remedy]:
    """Settings that train the same policy and fit into ``limit`` bytes, each with the largest micro batch that does.

    The fastest comes first; what costs more time follows if it allows more rows at once. Parameters leave the GPU only
    where nothing else fits.

    Args:
        load: the experiment with further overrides, which is too large as it is.
    """
    spec = load(())
    rows = _rows(spec, gpus)
    left = [rows >> halvings for halvings in range(rows.bit_length())]  # the micro batches not known to fit yet
    held_fits, found = True, False
    for change in _variants(spec):
        if found if _ON_HOST in change else not held_fits:
            continue
        fitting = None
        while left and (change or left[-1] < rows):
            words = change if left[-1] == rows else (*change, f"train.micro_batch={left[-1]}")
            memory = predict_training_memory(load(words), gpus)
            if memory.on_gpu > limit:
                held_fits = memory.prediction.whole.total + CUDA_BYTES <= limit
                break
            fitting = Remedy(words, memory)
            left.pop()
        if fitting is not None:
            found = True
            yield fitting


def storage_remedies(
    load: Callable[[Sequence[str]], ExperimentSpec], limit: int, gpus: Gpus = ONE_GPU
) -> Iterator[Remedy]:
    """As ``remedies``, but settings that store or train less, and so train another policy; what changes least comes
    first. What needs a package that is not installed is left out."""
    spec = load(())
    rows = _rows(spec, gpus)
    for change in _less_stored(spec, gpus):
        for halvings in range(rows.bit_length()):
            words = (*change, f"train.micro_batch={rows >> halvings}") if halvings else change
            memory = predict_training_memory(load(words), gpus)
            if memory.on_gpu <= limit:
                yield Remedy(words, memory)
                break
            if memory.prediction.whole.total + CUDA_BYTES > limit:
                break


def _less_stored(spec: ExperimentSpec, gpus: Gpus) -> list[tuple[str, ...]]:
    """Settings that store parameters and optimiser states in fewer bits, or train adapters alone."""
    if isinstance(spec.backbone, CustomBackboneSpec):
        return []
    if spec.backbone.adapter is not None:
        return _adapters(spec)
    precision = ("train.precision=bf16",) if spec.train.precision == "fp32" else ()
    storage, found = spec.storage, []
    if spec.optim.kind == "adamw":
        bf16 = precision if storage.parameters == "bf16" else (*precision, "train.memory.parameters=bf16")
        if storage.parameters == "fp32":
            found.append((*bf16, "train.memory.keep=none"))
        if storage.optimizer_states != "8bit" and gpus.all == 1 and find_spec("torchao"):
            found.append((*bf16, "train.memory.optimizer_states=8bit", "train.memory.keep=none"))
    return found + _adapters(spec)


def _adapters(spec: ExperimentSpec) -> list[tuple[str, ...]]:
    """Settings that train adapters alone, beside a smaller base than the spec's."""
    assert not isinstance(spec.backbone, CustomBackboneSpec), "it has no adapters"
    if not find_spec("peft"):
        return []
    adapter, bases = spec.backbone.adapter, get_args(AdapterSpec.model_fields["base"].annotation)
    found: list[tuple[str, ...]] = []
    for base in bases[1 if adapter is None else bases.index(adapter.base) + 1 :]:
        if base == "4bit" and not find_spec("bitsandbytes"):
            continue
        fits = spec.train.precision == "bf16" or (spec.train.precision == "fp8" and base == "bf16")
        precision = () if fits else ("train.precision=bf16",)
        word = f"backbone.adapter={{kind: lora, base: {base}}}" if adapter is None else f"backbone.adapter.base={base}"
        found.append((*precision, word, "train.memory={keep: none}"))
    return found


def _variants(spec: ExperimentSpec) -> list[tuple[str, ...]]:
    """What lowers the memory beside a smaller micro batch, in the order of what it costs."""
    variants: list[tuple[str, ...]] = [()]
    if spec.train.precision == "fp32":
        variants.append(("train.precision=bf16",))
    choices = get_args(MemorySpec.model_fields["keep"].annotation)
    less = choices[choices.index(spec.train.memory.keep) + 1 :]
    found = variants + [(*words, f"train.memory.keep={keep}") for keep in less for words in variants]
    if spec.train.memory.offload == "parameters":
        return found
    least = ("train.memory.keep=none",) if less else ()
    offloads = ["train.memory.offload=activations"] if spec.train.memory.offload == "none" else []
    if spec.optim.kind != "muon":
        offloads.append(_ON_HOST)
    return found + [(*words, *least, offload) for offload in offloads for words in variants]


def _without_groups(spec: ExperimentSpec) -> ExperimentSpec:
    """Groups take no memory, and their patterns may be of layers that are not followed."""
    return spec.model_copy(update={"optim": spec.optim.model_copy(update={"groups": ()})})


def _samples(spec: ExperimentSpec, gpus: Gpus) -> int:
    """The samples of an optimiser step on the GPU that has most of them."""
    return -(-spec.train.batch_size // gpus.all)


def _rows(spec: ExperimentSpec, gpus: Gpus) -> int:
    """The rows of a micro batch."""
    samples = _samples(spec, gpus)
    return min(samples, spec.train.micro_batch or samples)


def sizes_of(spec: ExperimentSpec) -> BackboneSource:
    """How to build the backbone, without its weights; see ``assumed_7b``."""
    if assumed_7b(spec) is not None:
        changes = {"init": "scratch", "checkpoint": None, "preset": "7b"}
        spec = spec.model_copy(update={"backbone": spec.backbone.model_copy(update=changes)})
    stored = initial_policy(spec)
    if stored is not None:
        return replace(stored.source(spec), weights=None)
    try:
        return replace(backbone_factory(spec, with_weights=False).open(), weights=None)
    except CheckpointError as error:
        preset = "preset=7b" if spec.backbone.kind == "chameleon" else "preset=small"
        raise CheckpointError(
            f"{error}; to predict the memory, its config.json and tokenizer.json are enough, or the sizes of a preset: "
            f"backbone.init=scratch backbone.checkpoint=null backbone.{preset}"
        ) from error


def assumed_7b(spec: ExperimentSpec) -> str | None:
    """The checkpoint of a Chameleon that is not here and called 7b, so that its sizes are taken to be those of the
    preset: all public ones have these, and the hub need not be asked."""
    backbone = spec.backbone
    if backbone.kind != "chameleon" or backbone.checkpoint is None or spec.init_from is not None:
        return None
    called_7b = re.search(r"(?<![0-9])7b(?![a-z0-9])", Path(backbone.checkpoint).name.lower())
    return backbone.checkpoint if called_7b and not Path(backbone.checkpoint).exists() else None


def longest_samples(spec: ExperimentSpec, text: TextTokenizer, layout: TokenLayout) -> tuple[list[TokenSequence], str]:
    """The longest sample of each kind that the spec can make, the longest first, and where its length comes from.

    Raises:
        TokenError: no sample of a kind fits into `backbone.max_seq_len`.
    """
    limit, kinds = spec.backbone.max_seq_len, spec.data.samples
    instruction = _longest_instruction(spec)
    prompt = text.encode(VLA_PROMPT.format(instruction=instruction))
    as_wished = _sample_set(spec, text, layout, prompt, sys.maxsize)
    excess = len(as_wished.longest("vla").input_ids) - limit if "vla" in kinds else 0
    if excess > 0:  # a shorter instruction may fit
        shortest = len(text.encode(VLA_PROMPT.format(instruction="")))
        prompt = prompt[: max(shortest, len(prompt) - excess)]
    samples = _sample_set(spec, text, layout, prompt, limit)
    ordered = sorted(kinds, key=lambda kind: len(samples.longest(kind).input_ids), reverse=True)
    longest = samples.longest(ordered[0])
    images = int((longest.input_ids == layout.image_start).sum())
    counted = f"{images} image{'s' if images > 1 else ''} of {spec.tokenizer.image.image_size} pixels"
    described = f"a {ordered[0]} sample of {counted}"
    if ordered[0] == "vla":
        described += f", {'as long as backbone.max_seq_len allows' if excess > 0 else _assumed(spec, instruction)}"
    return [samples.longest(kind) for kind in ordered], described


def _longest_instruction(spec: ExperimentSpec) -> str:
    """The longest of the tasks that the spec names, or of an assumed length."""
    assumed = (_WORDS * INSTRUCTION_CHARACTERS)[:INSTRUCTION_CHARACTERS]
    splits = (spec.data.train, spec.data.val_ind, spec.data.val_ood)
    named = (task for split in splits for source in sources_of(split) for task in source.tasks or ())
    return max([assumed, *named], key=len)


def _assumed(spec: ExperimentSpec, instruction: str) -> str:
    state = f", a state of {_state_numbers(spec)} numbers" if spec.data.use_state else ""
    return f"{spec.action_head.time_horizon} actions{state} and an instruction of {len(instruction)} characters"


def _state_numbers(spec: ExperimentSpec) -> int:
    ranges = spec.tokenizer.statistics
    return len(ranges.state_low) if isinstance(ranges, ExplicitRanges) else STATE_NUMBERS


class _NoImages:
    """Stands where an image tokenizer would: the samples have the codes of blank images."""

    codes_per_side = 0

    def encode(self, frames: NDArray[np.uint8]) -> Ids:
        raise AssertionError("nothing is encoded")

    def fingerprint(self) -> str:
        raise AssertionError("nothing is cached")


class _GivenPrompt:
    """Has ids for the prompt with the instruction, whatever that says."""

    def __init__(self, text: TextTokenizer, prompt: list[int]) -> None:
        self._text, self._prompt = text, prompt

    @property
    def vocabulary_size(self) -> int:
        return self._text.vocabulary_size

    def encode(self, text: str) -> list[int]:
        return self._text.encode(text) if text == WORLD_MODEL_PROMPT else self._prompt

    def save(self, folder: Path) -> None:
        raise AssertionError("nothing is saved")


def _sample_set(
    spec: ExperimentSpec, text: TextTokenizer, layout: TokenLayout, prompt: list[int], max_length: int
) -> SampleSet:
    """The samples of one episode without contents, which are as long as those of a real one."""
    horizon, numbers = spec.action_head.time_horizon, spec.action_head.action_dim
    steps, side = max(horizon, 2), spec.tokenizer.image.image_size // PIXELS_PER_CODE
    blank = ImageCodes.of([np.full((steps, side, side), layout.first_image_code)])
    states = _state_numbers(spec) if spec.data.use_state else 0
    actions = np.zeros((steps, numbers), np.float32)
    episode = Episode(0, "", actions, np.zeros((steps, states), np.float32) if states else None)
    encoding = Encoding(
        layout=layout,
        bins=Bins(spec.tokenizer.bins),
        action_range=ValueRange((-1.0,) * numbers, (1.0,) * numbers),
        state_range=ValueRange((-1.0,) * states, (1.0,) * states) if states else None,
        text=_GivenPrompt(text, prompt),
        images=_NoImages(),
        cameras=spec.data.cameras,
        history=spec.data.moments,
        horizon=horizon,
        max_length=max_length,
    )
    return SampleSet(EpisodeList.of([episode]), [blank] * len(spec.data.cameras), encoding, spec.data.samples)
