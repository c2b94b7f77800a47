"""torchrun in a fork of warm_program.py, whose workers need not import torch either: they are forks as well.

The agent is torch's own: rendezvous, variables, signals, exit codes and what it reports. Only where it would execute
Python anew for a worker, one of the forks takes that place which were made before the agent had threads.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
from warm_program import run_python


def main(words: list[str]) -> None:
    reserve = Reserve(int(run.parse_args(words).nproc_per_node))
    if reserve.request is None:
        subprocess_handler.Popen = lambda **options: Worker(reserve, **options)
        run.main(words)
    else:
        os.environ.clear()
        os.environ.update(reserve.request["environment"])
        run_python(reserve.request["argv"][1:])


class Reserve:
    """Children in sessions of their own, each of which waits for what it is to carry out: its `request`."""

    def __init__(self, number: int) -> None:
        self.request: Mapping[str, Any] | None = None
        self._waiting: list[tuple[int, socket.socket]] = []
        for _ in range(number):
            own, other = socket.socketpair()
            if (pid := os.fork()) == 0:
                os.setsid()
                for end in (own, *(end for _, end in self._waiting)):
                    end.close()
                with other.makefile() as file:
                    message = file.read()
                if not message:
                    os._exit(0)  # the agent has ended
                self.request = json.loads(message)
                return
            other.close()
            self._waiting.append((pid, own))

    def send(self, request: Mapping[str, Any]) -> int:
        """The id of the process that carries it out."""
        pid, end = self._waiting.pop(0)
        with end:
            end.sendall(json.dumps(request).encode())
        return pid


class Worker(subprocess.Popen[str]):
    """As `subprocess.Popen`, with one of a reserve as the child."""

    def __init__(self, reserve: Reserve, **options: Any) -> None:
        self._reserve = reserve
        assert options["start_new_session"], "those of the reserve have sessions of their own"
        assert options["stdout"] is options["stderr"] is None, "those of the reserve have the streams of the agent"
        super().__init__(**options)

    def _execute_child(self, args: tuple[str, ...], *rest: Any) -> None:
        environment = rest[5]
        assert args[0] == sys.executable, args
        self.pid = self._reserve.send({"argv": list(args), "environment": environment})
        self._child_created = True
