"""How far uploads have got, as the system sees it: the clients of the trackers do not tell."""

import contextlib
from pathlib import Path

import psutil

from vlatrack.tracking.run_files import RunFiles

_SENDING, _INODE = 4, 9
"""Columns of the kernel's table of TCP sockets."""


class Uploads:
    """The files of a run that this process, or a child such as wandb-core, is reading."""

    def __init__(self, files: RunFiles) -> None:
        self._files = files
        self._furthest: dict[str, int] = {}

    def have_moved(self) -> bool:
        """Whether more of a file has left this machine than ever before: an upload that begins anew has not moved until
        it is further than the one that failed."""
        moved = False
        this = psutil.Process()
        for process in (this, *this.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):  # it has just ended
                reading = self._reading(process)
                waiting = _bytes_waiting(process) if reading else 0
                for path, position in reading.items():
                    moved |= position - waiting > self._furthest.get(path, 0)
                    self._furthest[path] = max(position - waiting, self._furthest.get(path, 0))
        return moved

    def _reading(self, process: psutil.Process) -> dict[str, int]:
        """How many bytes of each file were read."""
        opened = [file for file in process.open_files() if file.mode == "r" and Path(file.path) != self._files.journal]
        return {file.path: file.position for file in opened if Path(file.path).is_relative_to(self._files.run_dir)}


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
