"""A process group on torch.distributed, for ranks started by torchrun or accelerate."""

import copy
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Self, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from vlatrack.errors import TrainingError
from vlatrack.training.process_group import ProcessGroup, RankLostError

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=1)
"""How long ranks wait while rank 0 encodes a large dataset. A rank that is gone is noticed at once."""

_ENDING_S = 2.0
"""Seconds to wait for a process to end after its connections have closed."""

_CODE_PLACE = re.compile(r"^\[\S+\] ")
"""The place in its source code with which gloo begins a message."""


class TorchProcessGroup(ProcessGroup):
    """One of several ranks. Weights and gradients use the device's backend, everything else gloo on the hosts."""

    def __init__(self) -> None:
        """Use `TorchProcessGroup.join`."""
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # NCCL neither notices a dead process nor exchanges numbers without synchronising the device; gloo does both.
        self._hosts = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        addresses = self.all_gather((socket.gethostname(), os.getpid()))
        on_machines = Counter(host for host, _ in addresses)
        self.local_world_size = on_machines[socket.gethostname()]
        self.per_machine = self.local_world_size if len(set(on_machines.values())) == 1 else self.world_size
        self._processes = _on_this_machine(addresses)

    @classmethod
    def join(cls) -> Self:
        """Join the group that the environment variables of torchrun describe.

        Raises:
            TrainingError: one of them is missing.
        """
        missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise TrainingError(f"environment: {', '.join(missing)} is not set; start several processes with torchrun")
        dist.init_process_group(_backends())
        return cls()

    def leave(self, *, failed: bool = False) -> None:
        """Leave the group; otherwise gloo's threads may abort the process at exit.

        After a failure with NCCL the group is not destroyed: that would wait for a collective the others never join.
        """
        if not failed or not torch.cuda.is_available():
            dist.destroy_process_group()

    def all_gather(self, value: T) -> list[T]:
        values: list[T | None] = [None] * self.world_size
        with _raising_rank_lost():
            dist.all_gather_object(values, value, group=self._hosts)
        return values  # type: ignore[return-value]  # every None has been replaced

    def broadcast(self, value: T) -> T:
        values = [value]
        with _raising_rank_lost():
            dist.broadcast_object_list(values, src=0, group=self._hosts)
        return values[0]

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if not self.is_main_process:
            self._barrier()
        yield
        if self.is_main_process:
            self._barrier()
        self._barrier()

    def _barrier(self) -> None:
        self.sum([0.0])

    def sum(self, numbers: Sequence[float]) -> Sequence[float]:
        values = torch.tensor(numbers, dtype=torch.float64)
        self._reduce_on_hosts(values)
        return values.tolist()

    def sum_on_device(self, number: Tensor) -> Tensor:
        summed = number.clone()
        with _raising_rank_lost():
            dist.all_reduce(summed)
        return summed

    @contextmanager
    def noticing_lost_ranks(self) -> Iterator[None]:
        with _raising_rank_lost():
            yield

    def broadcast_weights(self, module: nn.Module) -> None:
        with _raising_rank_lost():
            for value in module.state_dict().values():
                dist.broadcast(value, src=0)

    def duplicate(self) -> Self:
        other = copy.copy(self)
        other._hosts = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
        return other

    def lost_ranks(self) -> list[int]:
        ended, _ = psutil.wait_procs(list(self._processes.values()), timeout=_ENDING_S)
        return [rank for rank, process in self._processes.items() if process in ended]

    def _reduce_on_hosts(self, values: Tensor) -> None:
        with _raising_rank_lost():
            dist.all_reduce(values, group=self._hosts)


@contextmanager
def process_group_of_one(*, needed: bool) -> Iterator[None]:
    """Inside the block torch has a process group: that of this process alone, which needs no port and no launcher.

    Args:
        needed: false does nothing, such as where several processes have joined one.
    """
    if not needed:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]  # else a mesh would choose a GPU by itself, and warn of it
    dist.init_process_group(_backends(), store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


def _backends() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


@contextmanager
def _raising_rank_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _CODE_PLACE.match(str(error)):
            raise
        detail = _CODE_PLACE.sub("", str(error)).partition(". ")[0]
        raise RankLostError(f"contact with another process of the training was lost ({detail})") from error


def _on_this_machine(addresses: Sequence[tuple[str, int]]) -> dict[int, psutil.Process]:
    """The processes of the other ranks on this machine, by rank."""
    found = {}
    for rank, (host, pid) in enumerate(addresses):
        if host == socket.gethostname() and pid != os.getpid() and psutil.pid_exists(pid):
            found[rank] = psutil.Process(pid)
    return found
