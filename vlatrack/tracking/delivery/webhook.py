"""Tells a chat of the findings in a run's journal: JSON as Slack takes it, sent to the address in an environment
variable, which appears in no file and no log."""

import http.client
import ipaddress
import json
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from vlatrack.errors import TrackerError, VlatrackError
from vlatrack.tracking.health import HEALTH, finding_of, is_event
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.journal.records import JournalReader, Record, finish_record
from vlatrack.tracking.privacy import redact, write_private
from vlatrack.tracking.run_files import RunFiles

VARIABLE = "VLATRACK_WEBHOOK_URL"
TIMEOUT_S = 10.0
ATTEMPTS, PAUSE_S = 3, 2.0
POLL_S = 0.5
_LONGEST = 3000
_log = logging.getLogger(__name__)


class WebhookRefusedError(VlatrackError):
    """The server's answer says that it will not take this; its status is the text."""


@dataclass(frozen=True)
class Webhook:
    """Where findings are sent; its text shows the host alone, for in a chat's address the path is the secret."""

    _url: SplitResult

    @classmethod
    def of_environment(cls) -> "Webhook | None":
        """The webhook that the environment names; None if it names none.

        Raises TrackerError for an address that is neither https nor http on this machine.
        """
        text = os.environ.get(VARIABLE, "").strip()
        if not text:
            return None
        try:
            url = urlsplit(text)
            host, _ = url.hostname, url.port
        except ValueError:
            raise TrackerError(f"{VARIABLE}: no address; give one that begins with https://") from None
        if not host or not (url.scheme == "https" or (url.scheme == "http" and _is_loopback(host))):
            raise TrackerError(f"{VARIABLE}: give an address that begins with https:// (http:// only on this machine)")
        return cls(url)

    def __str__(self) -> str:
        return f"webhook at {self._url.hostname}"

    def post(self, text: str) -> None:
        """Send one message. Raises WebhookRefusedError for an answer that is final, OSError or HTTPException if the
        server is not reached, does not answer in time, or asks to come again."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self._url.hostname), self._url.port, timeout=TIMEOUT_S)
        try:
            path = f"{self._url.path or '/'}{'?' + self._url.query if self._url.query else ''}"
            body = json.dumps({"text": text}).encode()
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            status = connection.getresponse().status
        finally:
            connection.close()
        if status == http.client.TOO_MANY_REQUESTS or status >= 500:
            raise ConnectionError(f"the server answers {status}")
        if not 200 <= status < 300:  # a redirection would take the message to a place that nobody has named
            raise WebhookRefusedError(f"the server answers {status}")


class WebhookSender:
    """Sends each finding that stands in the journal once; a process that takes over goes on where the last one was."""

    def __init__(self, files: RunFiles, webhook: Webhook, stopping: threading.Event) -> None:
        self._files, self._webhook, self._stopping = files, webhook, stopping
        self._place = files.delivery / "webhook.json"

    def run(self) -> None:
        """Follow the journal until the run is over; the body of a thread."""
        try:
            self._follow()
        except (TrackerError, OSError) as error:
            _log.warning("%s: ended: %s", self._webhook, error)

    def _follow(self) -> None:
        reader = JournalReader(self._files.journal, offset=_offset(self._place, self._files.journal))
        is_over = False
        while not self._stopping.is_set():
            while (record := reader.read_to_other()) is not None:
                if (text := message(record, self._files.run_dir)) is not None:
                    self._send(text)
                write_private(self._place, json.dumps({"offset": reader.offset}))
            if is_over:
                return
            # Read once more after the end: something may have come before the journal was released.
            is_over = not is_being_written(self._files.journal) and finish_record(self._files.journal) is not None
            self._stopping.wait(0 if is_over else POLL_S)

    def _send(self, text: str) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._webhook.post(text)
            except WebhookRefusedError as error:
                _log.warning("%s: %s; a finding was not sent", self._webhook, error)
                return None
            except (OSError, http.client.HTTPException) as error:
                reason = type(error).__name__ if not isinstance(error, ConnectionError) else str(error)
                _log.warning("%s: attempt %d of %d failed (%s)", self._webhook, attempt, ATTEMPTS, redact(reason))
            if attempt < ATTEMPTS and self._stopping.wait(PAUSE_S * attempt):
                return None
        return None


def message(record: Record, run_dir: Path) -> str | None:
    """What people read of a record; None if it holds no finding."""
    if not is_event(record) or record.data["name"] != HEALTH or (finding := finding_of(record)) is None:
        return None
    return redact(f"{run_dir.parent.name} / {run_dir.name}: {finding.severity}: {finding.line()}")[:_LONGEST]


def _offset(place: Path, journal: Path) -> int:
    """Where to go on in the journal; its beginning if the file is not there, damaged, or of another journal."""
    try:
        offset = json.loads(place.read_text())["offset"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    is_fit = type(offset) is int and 0 < offset <= journal.stat().st_size
    if not is_fit:
        return 0
    with journal.open("rb") as file:
        file.seek(offset - 1)
        return offset if file.read(1) == b"\n" else 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
