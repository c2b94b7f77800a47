"""`vlatrack` in the walk through a page: its first command is a new process, the others are forks of a warm one.

What goes on until Ctrl-C (`ui`, `serve`, `status --watch`) does so in the background once it has said how it
ends; the walk presses Ctrl-C. Started with `python -S -E`, so it imports the standard library alone.
"""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["WALK_FOLDER"])
WARM, FIRST, SERVERS = FOLDER / "warm", FOLDER / "first", FOLDER / "servers"
PATIENCE_S = 120
IN_TERMINAL = "--in-terminal"


def main(words: list[str]) -> int:
    if words and words[0] == IN_TERMINAL:
        return in_terminal(words[1:])
    if words and (words[0] in ("ui", "serve") or "--watch" in words):
        return serve(words)
    if not FIRST.exists():
        FIRST.touch()
        os.execv(sys.executable, [sys.executable, "-m", "vlatrack", *words])
    return warm(words)


def warm(words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(WARM))
        request = {"argv": words, "cwd": str(Path.cwd()), "environment": dict(os.environ)}
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
        pid = int.from_bytes(server.recv(8), "little", signed=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(pid, number))
        return int.from_bytes(server.recv(8), "little", signed=True)


def serve(words: list[str]) -> int:
    said = FOLDER / f"server-{os.getpid()}.txt"
    code = said.with_suffix(".code")
    program = [sys.executable, "-m", "vlatrack", *words]
    if "--watch" in words:
        program = [sys.executable, "-S", "-E", __file__, IN_TERMINAL, *program]
    with said.open("w") as output:
        process = subprocess.Popen(  # in a group of its own, which Ctrl-C is sent to, and with its exit code in a file
            ["sh", "-c", 'trap : INT; "$@"; echo $? > "$0"', str(code), *program],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
    give_up = time.monotonic() + PATIENCE_S
    while "Ctrl-C ends" not in said.read_text():
        if process.poll() is not None or time.monotonic() > give_up:
            print(said.read_text(), end="")
            return int(code.read_text()) if code.exists() else 1
        time.sleep(0.05)
    with SERVERS.open("a") as servers:
        servers.write(f"{process.pid} {code}\n")
    print(said.read_text(), end="")
    return 0


def in_terminal(program: list[str]) -> int:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(program[0], program)
    signal.signal(signal.SIGINT, lambda *_: os.write(terminal, b"\x03"))
    with contextlib.suppress(OSError):  # how the end of a terminal shows
        while said := os.read(terminal, 1 << 16):
            os.write(1, said)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
