"""The processes of one command: a single process, or several started by torchrun or accelerate."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlatrack.errors import USER_ERROR, NonFiniteError, VlatrackError
from vlatrack.training.process_group import ProcessGroup, RankLostError

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OTHERS_ERROR_S = 10.0


def quiet_libraries() -> None:
    """Let libraries log errors alone, before torch is imported."""
    for name in ("accelerate", "bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def joined_process_group() -> Iterator[ProcessGroup]:
    """Join the process group that the environment describes; a single process joins none and imports no torch.

    A rank that ends because it lost another one prints no error: the other rank has printed one, or rank 0 reports it.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    from vlatrack.training.torch_process_group import TorchProcessGroup

    group = TorchProcessGroup.join()
    try:
        yield group
    except BaseException as error:
        lost = isinstance(error, RankLostError)
        if lost:  # let the failed rank end first: torchrun reports the first exit status as the cause
            group.lost_ranks()
        group.leave(failed=True)
        if lost:
            raise SystemExit(1) from None
        if isinstance(error, NonFiniteError) and not group.is_main_process:  # all ranks raise it; one says so
            raise SystemExit(USER_ERROR) from None
        raise
    group.leave()


@contextmanager
def process_on_its_own() -> Iterator[int]:
    """The rank of a process that torchrun has started and that shares nothing with the others but files; 0 without it.

    Its libraries join no process group: the end of one process is then not that of all. Of several GPUs each takes its
    own. An error that rank 0 has as well is printed by rank 0 alone: torchrun ends the others after it.
    """
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    for name in _OF_TORCHRUN:
        os.environ.pop(name, None)
    if local_rank:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
    try:
        yield rank
    except VlatrackError:
        if rank:
            time.sleep(_OTHERS_ERROR_S)
        raise
