"""Several processes as torchrun starts them, and the end of all of them."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil


def torchrun(*program: str | Path, processes: int = 2) -> list[str]:
    """The command line that starts `program` so often, on this machine, at a port that the system chooses."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [*launcher, "--nproc-per-node", str(processes), *map(str, program)]


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A process that is ended at the end, also when the test has waited for it in vain: Popen would wait again."""
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        end_family(process)


def end_family(process: "subprocess.Popen[str]") -> None:
    """Kill a process and what it has started: torchrun's own are in sessions of their own and would outlive it."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # not read to its end: what is not of the family could hold it open
