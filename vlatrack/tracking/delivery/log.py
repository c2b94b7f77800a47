"""The log of the delivery process: `deliver.log`, to which its standard output and error lead.

The libraries of the trackers print, warn and log there as well, addresses with their logins and answers of servers
among it: every line goes through redaction, whoever writes it.
"""

import atexit
import logging
import sys
import threading
from collections.abc import Iterable
from typing import IO, Any, cast

from vlatrack.tracking.printable import printable
from vlatrack.tracking.privacy import redact


def log_to_standard_error() -> None:
    """Send the log of this process to standard error, and let nothing secret through there or on standard output."""
    sys.stdout, sys.stderr = (cast(IO[str], _RedactedLines(stream)) for stream in (sys.stdout, sys.stderr))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def warn_on_terminal() -> None:
    """Show warnings without secrets and control characters: they may tell of what is in the files of others."""
    handler = logging.StreamHandler()
    handler.setFormatter(_TerminalFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


class _TerminalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(printable(super().format(record)))


class _OneLineFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its name in logging
        return printable(super().formatMessage(record))


class _RedactedLines:
    """A stream that passes whole lines on, redacted: a secret may come in pieces."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._unfinished = stream, ""
        self._lock = threading.RLock()
        atexit.register(self._finish)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._unfinished = (self._unfinished + text).split("\n")
            for line in lines:
                self._stream.write(f"{redact(printable(line))}\n")
            self._stream.flush()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def _finish(self) -> None:
        if self._unfinished:
            self.write("\n")
