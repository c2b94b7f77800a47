"""The part of `vlatrack validate --memory`: sizes of GPUs, and the table of a prediction."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from vlatrack.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from vlatrack.bench.memory import Gpus, Remedy, TrainingMemory
    from vlatrack.spec.experiment import ExperimentSpec
    from vlatrack.training.memory_tracker import MemoryUse

_GIB = 1 << 30
_UNITS = {"T": 10**12, "G": 10**9, "M": 10**6, "TI": 1 << 40, "GI": _GIB, "MI": 1 << 20}


def parse_memory(size: str) -> int:
    """Bytes of `80GB`, `80G` (both 10^9 bytes each) or `80GiB` (2^30).

    Raises:
        SpecError: it is something else, such as a number without a unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([TGM]i?)B?", size.strip(), re.IGNORECASE)
    if found is None or not float(found[1]):
        raise SpecError(f"--gpu-memory {size}: expected a size with its unit, such as 80GB, 80GiB or 24G")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def parse_gpus(number: str) -> "Gpus":
    """The GPUs of `8`, which are in one machine, or of `2x8`, two machines with eight each.

    Raises:
        SpecError: it is something else.
    """
    from vlatrack.bench.memory import Gpus

    found = re.fullmatch(r"(?:([1-9]\d{0,3})x)?([1-9]\d{0,3})", number.strip())
    if found is None:
        raise SpecError(f"--gpus {number}: expected a number such as 8, or machines x GPUs such as 2x8")
    return Gpus(on_each_machine=int(found[2]), machines=int(found[1] or 1))


def show_memory(
    console: "Console",
    load: Callable[[Sequence[str]], "ExperimentSpec"],
    gpus: "Gpus",
    limit: tuple[str, int] | None,
) -> bool:
    """Predict and print what a training needs; returns whether it fits, true without a limit.

    Args:
        load: the experiment with further overrides.
        limit: the memory of each GPU, as the user wrote it and in bytes.

    Raises:
        VlatrackError: the sizes of the backbone are not known, or the experiment cannot make a sample.
    """
    from vlatrack.bench.memory import predict_training_memory

    spec = load(())
    with console.status("predicting the memory …"):
        memory = predict_training_memory(spec, gpus)
    _print_table(console, memory)
    for line in _assumptions(spec, memory):
        console.print(line)
    if limit is None:
        return True
    size, allowed = limit
    fits = memory.on_gpu <= allowed
    needs = f"it needs {_on_gpu(memory)} with the CUDA context, of {_gib(allowed)} GiB"
    console.print(f"{'fits' if fits else 'does not fit'} into {size}: {needs}", soft_wrap=True)
    if fits:
        return True
    _print_remedies(console, load, memory, gpus, allowed)
    return False


def _print_table(console: "Console", memory: "TrainingMemory") -> None:
    from rich.table import Table

    prediction = memory.prediction
    whole, peak = prediction.whole, prediction.peak
    console.print()
    console.print(f"parameters  {prediction.parameters:,}, {prediction.trainable:,} of them trainable", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("GiB on each GPU" if math.prod(memory.shape) > 1 else "GiB", "in all", "at the peak"):
        table.add_column(heading, justify="left" if heading.startswith("GiB") else "right")
    table.add_row("weights", _gib(whole.weights), _gib(peak.weights))
    table.add_row("gradients", _gib(whole.gradients), _gib(peak.gradients))
    table.add_row("optimiser states", _gib(whole.optimizer_states), _gib(peak.optimizer_states))
    if whole.averages:
        table.add_row("averages of weights", _gib(whole.averages), _gib(peak.averages))
    table.add_row("activations", "", _gib(peak.activations))
    table.add_row("temporary results", "", _gib(peak.temporary))
    table.add_row("predicted peak", "", _gib(peak.total), style="bold")
    console.print(table)
    if prediction.host.total:
        console.print(f"in the host's memory  {_host_parts(prediction.host)}", soft_wrap=True)


def _assumptions(spec: "ExperimentSpec", memory: "TrainingMemory") -> list[str]:
    from vlatrack.bench.memory import assumed_7b

    prediction, rows = memory.prediction, "train.micro_batch" if spec.train.micro_batch else "train.batch_size"
    accumulation = f"; {memory.micro_batches} micro batches a step, whose gradients accumulate"
    lines = [
        f"assumed: {prediction.rows} rows ({rows}) x {prediction.tokens} tokens ({memory.longest_row}), "
        f"{_processes(memory.shape)}{accumulation if memory.micro_batches > 1 else ''}",
        "predicted from eager code on the CPU's kernels; compiled code needs less. Evaluation and the image tokenizer "
        "are not counted",
    ]
    if (checkpoint := assumed_7b(spec)) is not None:
        lines.append(f"assumed: {checkpoint}, which is not here, has the sizes of the 7b preset")
    if spec.loss.gradient_share_every is not None:
        lines.append("not counted: steps of loss.gradient_share_every need up to two more sets of gradients")
    return lines


def _processes(shape: tuple[int, int]) -> str:
    replicate, shard = shape
    copies = f"{replicate} copies of the policy, each " if replicate > 1 else "the policy "
    if shard > 1:
        return f"{copies}sharded over {shard} GPUs"
    return f"{replicate} GPUs with the whole policy each" if replicate > 1 else "one GPU"


def _print_remedies(
    console: "Console",
    load: Callable[[Sequence[str]], "ExperimentSpec"],
    memory: "TrainingMemory",
    gpus: "Gpus",
    allowed: int,
) -> None:
    from vlatrack.bench.memory import CUDA_BYTES, remedies, storage_remedies

    whole = memory.prediction.whole
    if whole.total + CUDA_BYTES > allowed:
        console.print(
            f"weights, gradients and optimiser states alone need {_gib(whole.total)} GiB, as they are stored",
            soft_wrap=True,
        )
    found: list[Remedy] = []
    with console.status("looking for settings that fit …"):
        for remedy in remedies(load, allowed, gpus):
            how = "; slow: layers cross to the GPU, and a CPU optimises" if remedy.takes_long else ""
            console.print(f"fits with: {_words(remedy.words)}  ({_needs(remedy.memory)}){how}", soft_wrap=True)
            found.append(remedy)
    if not all(remedy.takes_long for remedy in found):
        return
    with console.status("looking for settings that store less …"):
        for remedy in storage_remedies(load, allowed, gpus):
            told = f"fits with: {_words(remedy.words)}  ({_needs(remedy.memory)}), which is another experiment"
            console.print(told, soft_wrap=True)
            found.append(remedy)
    if not found:
        console.print("no setting would: take a smaller backbone, a larger GPU or more of them (--gpus)")


def _words(words: Sequence[str]) -> str:
    """Settings as a shell takes them."""
    return " ".join(f"'{word}'" if " " in word else word for word in words)


def _needs(memory: "TrainingMemory") -> str:
    host = memory.prediction.host.total
    return f"{_on_gpu(memory)}, and {_gib(host)} GiB of the host's memory" if host else _on_gpu(memory)


def _host_parts(use: "MemoryUse") -> str:
    """Gibibytes in all, and of each part that is there."""
    parts = {
        field.name.replace("_", " ").replace("optimizer", "optimiser"): getattr(use, field.name)
        for field in fields(use)
    }
    told = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    return f"{_gib(use.total)} GiB of each process: {told}"


def _on_gpu(memory: "TrainingMemory") -> str:
    return f"{_gib(memory.on_gpu)} GiB"


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f}"
