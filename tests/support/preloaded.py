"""vlatrack, a script or torchrun as a process of its own that need not import torch and transformers first.

Those imports take six seconds of a core, several times what most tests are about. What a test gets here is a real
process with its own pid, process group, environment, folder and files, which only began at the end of its imports: a
fork of warm_program.py, of which each worker of pytest has one.
"""

import atexit
import functools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

SUPPORT = Path(__file__).parent
SERVER = SUPPORT / "warm_program.py"
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])]),
    "PYTHONWARNINGS": "error:undeclared metric",  # by its text: the filters are read before vlatrack can be imported
}
WORD = 8  # bytes of an answer
PATIENCE_S = 120
READ_EARLY = (
    *("PYTHON", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH", "CUDA_", "NVIDIA_", "HF_", "MPL"),
    *("LD_", "MALLOC_"),
)
"""Beginnings of variables that libraries look at when they are imported or loaded."""
SET_BY_IMPORTS = {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"}
"""What scikit-learn and torch.compile set in the process of pytest when a test uses them, to what they would be."""


class PreloadedPopen(subprocess.Popen[str]):
    """As `subprocess.Popen`, with the words behind `program`, and always in a process group of its own."""

    program = "vlatrack"

    def _execute_child(self, args: list[str], *rest: Any) -> None:
        _, before, _, _, cwd, env, _, _, _, *ends, _, _, _, _, _, new_session, process_group = rest
        assert before is None, "code that is to run before the program needs a fresh process"
        assert not new_session, "a new session needs a fresh process"
        assert process_group == 0, "the program has a process group of its own"
        p2cread, _, _, c2pwrite, _, errwrite = ends
        environment = dict(os.environ if env is None else env)
        request = {"program": self.program, "argv": args, "cwd": str(cwd or Path.cwd()), "environment": environment}
        streams = [theirs if theirs != -1 else own for theirs, own in ((p2cread, 0), (c2pwrite, 1), (errwrite, 2))]
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server())
        umask = os.umask(0)
        os.umask(umask)
        request |= {"as_module": self.program == "vlatrack", "umask": umask}
        socket.send_fds(self._answers, [json.dumps(request).encode()], streams)
        self.pid = self._answer()
        self._child_created = True
        self._close_pipe_fds(*ends)

    def _answer(self) -> int:
        word = self._answers.recv(WORD, socket.MSG_WAITALL)
        assert len(word) == WORD, f"the warm program has ended: {_text(_said_by_the_server())}"
        return int.from_bytes(word, "little", signed=True)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags == os.WNOHANG and not select.select([self._answers], [], [], 0)[0]:
            return 0, 0
        code = self._answer()
        self._answers.close()
        return self.pid, -code if code < 0 else code << 8  # as waitpid tells it

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


class PreloadedPython(PreloadedPopen):
    """With the words behind `python`: a script."""

    program = "python"


class PreloadedTorchrun(PreloadedPopen):
    """With the words behind `torchrun`; its workers need not import anything either."""

    program = "torchrun"


def is_like_the_server(environment: Mapping[str, str]) -> bool:
    """Whether the imports of a process with these variables would be those of the server."""
    return _read_early(environment) == _read_early(_environment_of_the_server())


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in environment.items() if name.startswith(READ_EARLY) and name not in SET_BY_IMPORTS
    }


@functools.cache
def _environment_of_the_server() -> dict[str, str]:
    return os.environ | ENVIRONMENT


@functools.cache
def _server() -> str:
    """The address of this process's own, which is ended with it."""
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address = Path(folder.name) / "socket"
    own = {"XDG_CONFIG_HOME": folder.name, "XDG_CACHE_HOME": folder.name}  # matplotlib writes there when it is imported
    process = subprocess.Popen(
        [sys.executable, SERVER, address],
        env=_environment_of_the_server() | own,
        stdin=subprocess.DEVNULL,
        stdout=_said_by_the_server(),
        stderr=subprocess.STDOUT,
        process_group=0,  # what Ctrl-C ends is pytest, which ends it
    )

    @atexit.register
    def end() -> None:
        process.kill()
        process.wait()
        folder.cleanup()

    give_up = time.monotonic() + PATIENCE_S
    while not address.is_socket():
        assert process.poll() is None, f"the warm program has ended: {_text(_said_by_the_server())}"
        assert time.monotonic() < give_up, "the warm program does not start"
        time.sleep(0.05)
    return str(address)


@functools.cache
def _said_by_the_server() -> IO[bytes]:
    """What libraries say while they are imported, which the program keeps from its users."""
    return tempfile.TemporaryFile()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()
