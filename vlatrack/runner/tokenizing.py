"""Encode the frames of an experiment before it runs: in several processes, or on the machines of a Ray cluster."""

import logging
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatrack.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    import numpy as np

    from vlatrack.builders.experiment import EncodeProgress, Experiment
    from vlatrack.data.samples import Encoding
    from vlatrack.spec.experiment import ExperimentSpec

_WAIT_S = 0.5


@dataclass(frozen=True)
class TokenizeJob:
    """What a process needs to take part; it can be sent to one."""

    spec: "ExperimentSpec"
    runs: Path  # the folder of the runs that will use what is encoded

    def open(self) -> "tuple[Experiment, Encoding]":
        """The experiment, and how its frames are encoded.

        Raises:
            VlatrackError: the data is missing or does not fit, or the image tokenizer is not available.
        """
        from vlatrack.builders.experiment import Experiment
        from vlatrack.builders.training import build_accelerator
        from vlatrack.runner.directory import store_of
        from vlatrack.runner.run import initial_policy
        from vlatrack.tokens.layout import TokenLayout

        spec = self.spec
        experiment = Experiment.new(spec, initial_policy(spec), store=store_of(self.runs))
        layout = experiment.source.build().layout if spec.backbone.kind == "custom" else TokenLayout()
        with tempfile.TemporaryDirectory(prefix="vlatrack-tokenizer-") as folder:
            encoding = experiment.encoding(layout, Path(folder) / "tokenizer", build_accelerator(spec).device)
        return experiment, encoding


def tokenize(job: TokenizeJob, progress: "EncodeProgress", *, rank: int = 0, world_size: int = 1) -> None:
    """Encode in this process: this rank's share first, then what no other process is at.

    Raises:
        VlatrackError: as `TokenizeJob.open`, or frames cannot be read.
    """
    experiment, encoding = job.open()
    experiment.encode_frames(encoding, progress, rank=rank, world_size=world_size)


def tokenize_in_processes(job: TokenizeJob, progress: "EncodeProgress", *, workers: int) -> None:
    """Encode in so many processes of this machine, which begin anew and have a share of the shards each.

    Raises:
        VlatrackError: as ``tokenize``; of the first process that fails.
    """
    # In this process first: what is wrong is said once, the tokenizer is fitted once, and damaged shards are found.
    experiment, encoding = job.open()
    if not experiment.missing_shards(encoding):
        return
    context = multiprocessing.get_context("spawn")
    told: Any = context.SimpleQueue()
    processes = [context.Process(target=_take_part, args=(job, rank, workers, told)) for rank in range(workers)]
    try:
        for process in processes:
            process.start()
        for rank, message in _messages(processes, told):
            if isinstance(message, str):
                raise DataError(message)
            name, done, total = message
            progress(name if workers == 1 else f"{name}, worker {rank + 1}", done, total)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _take_part(job: TokenizeJob, rank: int, workers: int, told: Any) -> None:
    import torch

    from vlatrack.errors import VlatrackError

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    try:
        tokenize(job, lambda *done: told.put((rank, done)), rank=rank, world_size=workers)
    except VlatrackError as error:
        told.put((rank, str(error)))
    told.put((rank, None))


def _messages(processes: Sequence[Any], told: Any) -> Iterator[tuple[int, Any]]:
    """What the processes tell, until all have ended; DataError for one that was killed."""
    running = set(range(len(processes)))
    while running:
        if told._reader.poll(_WAIT_S):
            rank, message = told.get()
            if message is None:
                running.discard(rank)
            else:
                yield rank, message
        elif dead := [rank for rank in running if processes[rank].exitcode is not None]:
            code = processes[dead[0]].exitcode
            raise DataError(f"worker {dead[0] + 1} ended with {code} (killed, perhaps for memory); use fewer --workers")


def tokenize_on_ray(job: TokenizeJob, progress: "EncodeProgress", *, workers: int | None) -> None:
    """Encode on a Ray cluster, of which all machines see the dataset and the folder of runs under the same paths.

    Args:
        workers: how many shards are encoded at the same time; None: one on each CPU, or each GPU if there are any.

    Raises:
        MissingPackageError: the extra `ray` is not installed.
        VlatrackError: as ``tokenize``.
    """
    try:
        import ray.data
    except ImportError:
        raise MissingPackageError("--ray needs ray: pip install 'vlatrack[ray]'") from None
    experiment, encoding = job.open()
    missing = experiment.missing_shards(encoding)
    total = sum(steps for *_, steps in missing)
    if not missing:
        return
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    there: dict[str, float] = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    at_once = workers or gpus or int(there["CPU"])
    names = ("codes", "shard", "steps")
    items = [dict(zip(names, values, strict=True)) for values in missing]
    encoded = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        ShardEncoder,
        fn_constructor_args=(job,),
        batch_size=1,
        concurrency=min(at_once, len(items)),
        num_gpus=1 if gpus else 0,
    )
    done = 0
    for row in encoded.iter_rows():
        if row["error"]:
            raise DataError(row["error"])
        done += row["steps"]
        progress("all splits", done, total)


class ShardEncoder:
    """Encodes shards on a machine of a Ray cluster; its experiment is opened once."""

    def __init__(self, job: TokenizeJob) -> None:
        self._experiment, self._encoding = job.open()

    def __call__(self, batch: "dict[str, np.ndarray]") -> dict[str, list[Any]]:
        from vlatrack.errors import VlatrackError

        errors = []
        for codes, shard in zip(batch["codes"], batch["shard"], strict=True):
            try:
                self._experiment.encode_shard(self._encoding, int(codes), int(shard))
                errors.append("")
            except VlatrackError as error:
                errors.append(str(error))
        return {"steps": list(batch["steps"]), "error": errors}
