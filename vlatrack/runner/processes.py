"""The processes of one command: a single process, or several started by torchrun or accelerate."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlatrack.errors import USER_ERROR, NonFiniteError
from vlatrack.training.process_group import ProcessGroup, RankLostError


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
