"""vlatrack with everything imported already: each command line is carried out in a fork of this process.

To import torch takes seconds each time. Run as `python warm_program.py SOCKET`; preloaded.py is the other end for
tests, stand_in.py for the pages of the documentation. A request is a JSON object {argv, cwd, environment, and where
they matter program, as_module, umask} with the three standard streams; the answers are the process id in 8 bytes, and
at its end the exit code in as many. The program is vlatrack, a Python script, or torchrun (warm_torchrun.py).
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORD = 8  # bytes of an answer


def main(address: str) -> None:
    import_all()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        request = serve(listener)
    carry_out(request)  # in a fork: this process never comes here


def import_all() -> None:
    for name in ("cli.main", "builders.experiment", "runner.run", "reports.run_content", "inference.policy"):
        importlib.import_module(f"vlatrack.{name}")
    gc.freeze()


def serve(listener: socket.socket) -> Mapping[str, Any]:
    """Fork for each request, and tell its client how that ended. Returns in the forks only, with their request."""
    clients: dict[int, tuple[int, socket.socket]] = {}  # by the pidfd of the fork
    while True:
        ready, _, _ = select.select([listener, *clients], [], [])
        for pidfd in ready:
            if pidfd is listener:
                continue
            pid, client = clients.pop(pidfd)
            _, status = os.waitpid(pid, 0)
            os.close(pidfd)
            with client:
                answer(client, os.waitstatus_to_exitcode(status))
        if listener not in ready:
            continue
        client, _ = listener.accept()
        message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
        if (pid := os.fork()) == 0:
            listener.close()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            for descriptor in (*streams, *clients, client.detach()):
                os.close(descriptor)
            for _, other in clients.values():
                other.close()
            request: Mapping[str, Any] = json.loads(message)
            return request
        answer(client, pid)
        clients[os.pidfd_open(pid)] = pid, client
        for stream in streams:
            os.close(stream)


def answer(client: socket.socket, number: int) -> None:
    try:
        client.sendall(number.to_bytes(WORD, "little", signed=True))
    except BrokenPipeError:
        return  # nobody waits for it any more


def carry_out(request: Mapping[str, Any]) -> None:
    """As the program would; `python -m vlatrack` finds modules in its folder as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    if request.get("as_module"):
        sys.path.insert(0, request["cwd"])
    if "umask" in request:
        os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    match request.get("program", "vlatrack"):
        case "vlatrack":
            sys.argv = ["vlatrack", *request["argv"]]
            importlib.import_module("vlatrack.cli.main").main()
        case "python":
            run_python(request["argv"])
        case "torchrun":
            importlib.import_module("warm_torchrun").main(request["argv"])


def run_python(words: list[str]) -> None:
    """As `python` would a script or, behind `-m`, a module, with or without `-u` before them."""
    if words[0] == "-u":
        words = words[1:]
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).absolute().parent))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # so that what the tests have is nothing that vlatrack finds
    main(sys.argv[1])
