"""How far uploads have got, as the system sees it: the clients of the trackers do not tell."""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from vlatrack.tracking.run_files import RunFiles

MOST_ROUNDS = 5
"""The digest of a file, and an upload to each of some trackers."""
_SENDING, _INODE = 4, 9
"""Columns of the kernel's table of TCP sockets."""


class Uploads:
    """The files of a run that this process, or a child such as wandb-core, is reading."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._positions: dict[tuple[int, int, str], int] = {}
        """By process, file descriptor and path."""
        self._sent: Counter[str] = Counter()

    def have_moved(self) -> bool:
        """Whether more of a file has left this machine since the last call. After a few times its size, as when an
        upload fails at its end again and again, that counts no more."""
        moved = False
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):  # it has just ended
                reading = self._reading(process)
                waiting = _bytes_waiting(process) if reading else 0
                for file in reading:
                    place = (process.pid, file.fd, file.path)
                    progress = file.position - waiting - self._positions.get(place, 0)
                    self._positions[place] = file.position - waiting
                    if progress > 0:
                        self._sent[file.path] += progress
                        moved |= self._sent[file.path] <= MOST_ROUNDS * Path(file.path).stat().st_size
        return moved

    def _reading(self, process: psutil.Process) -> list[Any]:
        opened = [file for file in process.open_files() if file.mode == "r" and Path(file.path) != self._files.journal]
        return [file for file in opened if Path(file.path).is_relative_to(self._files.run_dir)]


def _bytes_waiting(process: psutil.Process) -> int:
    """What the process has sent and the kernel still holds, because the network is slow: often megabytes."""
    sockets, waiting = set(), 0
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            sockets.add(link.readlink().name)
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if f"socket:[{columns[_INODE]}]" in sockets:
                    waiting += int(columns[_SENDING].partition(":")[0], 16)
    return waiting
