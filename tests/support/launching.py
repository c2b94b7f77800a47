"""Several processes as torchrun starts them, and the end of all of them."""

import contextlib
import subprocess
import sys
from pathlib import Path

import psutil


def torchrun(*program: str | Path, processes: int = 2) -> list[str]:
    """The command line that starts `program` so often, on this machine, at a port that the system chooses."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*launcher, "--nproc-per-node", str(processes), *map(str, program)]


def end_family(process: "subprocess.Popen[str]") -> None:
    """Kill a process and what it has started: torchrun's own are in sessions of their own and would outlive it."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()
