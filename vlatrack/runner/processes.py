"""The processes that one command was started in: one, or as many as torchrun or accelerate were told."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlatrack.errors import USER_ERROR, NonFiniteError
from vlatrack.training.process_group import ProcessGroup, RankLostError


@contextmanager
def joined_process_group() -> Iterator[ProcessGroup]:
    """This process among those that the environment names; a process alone makes no group and imports no torch.

    A rank that only ends because another one did says nothing: the other has, or the first one tells.
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
        if lost:  # the one that failed should end first: torchrun takes the first exit status for the reason
            group.lost_ranks()
        group.leave(failed=True)
        if lost:
            raise SystemExit(1) from None
        if isinstance(error, NonFiniteError) and not group.is_main_process:  # all ranks raise it; one says so
            raise SystemExit(USER_ERROR) from None
        raise
    group.leave()
