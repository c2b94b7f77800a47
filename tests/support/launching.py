"""Several processes as torchrun starts them, and the end of all of them."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import psutil
from preloaded import ENVIRONMENT, PreloadedPopen, PreloadedPython, PreloadedTorchrun, is_like_the_server

Process: TypeAlias = "subprocess.Popen[str]"


def torchrun(*program: str | Path, processes: int = 2) -> list[str]:
    """The command line that starts `program` so often, on this machine, at a port that the system chooses."""
    return [sys.executable, "-m", "torch.distributed.run", *_words(program, processes)]


def start_torchrun(*program: str | Path, processes: int = 2, env: Mapping[str, str], **options: Any) -> Process:
    """The same in a process group of its own. If nothing in `env` changes imports, it begins at the end of them."""
    if is_like_the_server(env):
        return PreloadedTorchrun(_words(program, processes), env=env, text=True, process_group=0, **options)
    return subprocess.Popen(torchrun(*program, processes=processes), env=env, text=True, process_group=0, **options)


def _words(program: Sequence[str | Path], processes: int) -> list[str]:
    """Those behind `torchrun`."""
    place = ["--standalone", "--local-addr", "127.0.0.1"]
    return [*place, "--nproc-per-node", str(processes), *map(str, program)]


def start_vlatrack(*arguments: str | Path, env: Mapping[str, str], **options: Any) -> Process:
    """`python -m vlatrack`, as start_torchrun starts what it starts."""
    words = list(map(str, arguments))
    if is_like_the_server(env):
        return PreloadedPopen(words, env=env, text=True, process_group=0, **options)
    return subprocess.Popen([sys.executable, "-m", "vlatrack", *words], env=env, text=True, process_group=0, **options)


def start_python(*script: str | Path, env: Mapping[str, str], **options: Any) -> Process:
    """A script, as start_torchrun starts it, once and by itself."""
    words = list(map(str, script))
    if is_like_the_server(env):
        return PreloadedPython(words, env=env, text=True, process_group=0, **options)
    return subprocess.Popen([sys.executable, *words], env=env, text=True, process_group=0, **options)


def carry_out(*script: str | Path, processes: int | None = 2, **environment: str) -> None:
    """By so many processes of torchrun, or without it. Raises AssertionError with what the script says if it fails."""
    env = os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1"} | environment
    if processes is None:
        process = start_python(*script, env=env, stderr=subprocess.PIPE)
    else:
        process = start_torchrun(*script, processes=processes, env=env, stderr=subprocess.PIPE)
    try:
        _, err = process.communicate(timeout=250)
    finally:
        end_family(process)
    assert process.returncode == 0, err


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[Process]:
    """A process that is ended at the end, also when the test has waited for it in vain: Popen would wait again."""
    process = subprocess.Popen(command, text=True, **options)
    try:
        yield process
    finally:
        end_family(process)


def end_family(process: Process) -> None:
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
