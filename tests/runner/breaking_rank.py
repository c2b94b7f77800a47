"""vlatrack, of which one rank breaks in its seventh step: BREAK says which, and how (`1:raise`, `1:kill`)."""

import os
import signal
import sys

from vlatrack.cli.main import main
from vlatrack.errors import DataError
from vlatrack.training import loop

_RANK, _HOW = os.environ["BREAK"].split(":")
_steps = iter(range(7))
_train_step = loop.train_step


def _break_in_the_seventh(*arguments: object, **named: object) -> object:
    if next(_steps, None) is None:
        match _HOW:
            case "raise":
                raise RuntimeError("the fan fell off")
            case "complain":
                raise DataError("frame 7: unreadable; download it again")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
    return _train_step(*arguments, **named)


if os.environ.get("RANK") == _RANK:
    loop.train_step = _break_in_the_seventh
sys.argv[0] = "vlatrack"
main()
