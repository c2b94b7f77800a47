"""`vlatrack` in the walk through a page: its first command is a new process, the others are forks of a warm one.

What goes on until Ctrl-C (`ui`, `serve`, `status --watch`) does so in the background once it has said its address;
the walk ends it. Started with `python -S -E`, so it imports the standard library alone.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["WALK_FOLDER"])
WARM, FIRST, SERVERS = FOLDER / "warm", FOLDER / "first", FOLDER / "servers"
PATIENCE_S = 120


def main(words: list[str]) -> int:
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
    with said.open("w") as output:
        process = subprocess.Popen(  # in a group of its own, which Ctrl-C is sent to, and with its exit code in a file
            ["sh", "-c", 'trap : INT; "$@"; echo $? > "$0"', str(code), *program],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
    expected = re.compile("RUNNING|FINISHED|no runs" if "--watch" in words else r"(?:http|ws)://[^\s/:]+:\d+")
    give_up = time.monotonic() + PATIENCE_S
    while not expected.search(said.read_text()):
        if process.poll() is not None or time.monotonic() > give_up:
            print(said.read_text(), end="")
            return int(code.read_text()) if code.exists() else 1
        time.sleep(0.05)
    with SERVERS.open("a") as servers:
        servers.write(f"{process.pid} {code}\n")
    print(said.read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
