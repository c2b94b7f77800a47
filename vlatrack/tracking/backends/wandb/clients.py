"""The processes of the wandb library, `wandb-core`: found, forgotten when they died, and ended.

All runs that this process has open share one. After a failed attempt it keeps the id of that run to itself, for as long
as it lives: the next attempt is told that the id is in use, and nothing of why the first one failed.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import wandb

from vlatrack.errors import TrackerError, VlatrackError
from vlatrack.tracking.backends.base import RemoteDeletedError
from vlatrack.tracking.privacy import redact

ORPHAN_TIMEOUT_S = 10.0
SPARE_S = 600.0
"""How long a client that serves other runs is spared, though one that a person deleted cannot be opened before its
end."""

_open_ids: set[str] = set()
_failures: dict[str, tuple[type[Exception], str]] = {}
"""Why the last attempt to open a run failed, by its id."""
_ended_at = [-math.inf]


@contextlib.contextmanager
def said_by(server: str, what: str) -> Iterator[None]:
    """Turn what the library raises into one line that begins with the server and `what` it does or does not; there is a
    kind of exception for each way to fail, most of them not public."""
    try:
        yield
    except VlatrackError:
        raise
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        if "in time" in said:  # it speaks of its own process, which waits for the server
            said = "it does not answer"
        raise TrackerError(f"W&B at {redact(server)} {what} ({redact(said)})") from error


def opened(run_id: str) -> None:
    """Note that a run is open in this process."""
    _failures.pop(run_id, None)
    _open_ids.add(run_id)


def closed(run_id: str) -> None:
    """Note that it is no more."""
    _open_ids.discard(run_id)


def end_idle_client() -> None:
    """Wait for the end of the client, unless it serves another run: it writes the last of an offline file only after
    it has told that the run is finished. ConnectionError if it was killed before that."""
    if _open_ids:
        return
    try:
        wandb.teardown()
    except SystemExit as error:
        raise ConnectionError(f"wandb-core ended with exit code {error.code}") from error


def reason_behind(error: Exception, run_id: str) -> Exception | None:
    """What to raise instead of what the library said of a run that could not be opened, None for the same; ends the
    client where that stands in the way of the next attempt."""
    if "previously created and deleted" in str(error):
        told = f"run {run_id} was deleted in W&B; undelete it there and `vlatrack sync`"
        _failures[run_id] = (RemoteDeletedError, told)
    elif "is in use" not in str(error):
        _failures[run_id] = (ConnectionError, str(error))
        return None
    kind, told = _failures.get(run_id, (ConnectionError, str(error)))
    if kind is not RemoteDeletedError or _may_end_clients():
        end_own_clients()
    return kind(told)


def _may_end_clients() -> bool:
    now = time.monotonic()
    if _open_ids and now < _ended_at[0] + SPARE_S:
        return False
    _ended_at[0] = now
    return True


def own_clients() -> list[psutil.Process]:
    """The wandb-core processes that this process started and that are alive."""
    children = psutil.Process().children()
    return [child for child in children if child.name() == "wandb-core" and child.status() != psutil.STATUS_ZOMBIE]


def end_own_clients() -> None:
    """End them; the library starts another when `forget_dead_client` was called."""
    for core in own_clients():
        core.kill()
        core.wait(ORPHAN_TIMEOUT_S)


def forget_dead_client() -> None:
    """If the wandb-core of this process was killed, let the library start another: by itself it never does."""
    if not own_clients():
        # It cannot reach the dead client, and would exit with that one's code; by then it has forgotten it.
        with contextlib.suppress(ConnectionError, SystemExit):
            wandb.teardown()


def end_orphaned_clients(folder: Path) -> None:
    """End client processes that outlived a killed delivery process: two senders would mix up the history."""
    for process in psutil.process_iter(["name", "ppid"]):
        if process.info["name"] != "wandb-core" or process.info["ppid"] == os.getpid():
            continue
        try:
            if any(Path(file.path).is_relative_to(folder) for file in process.open_files()):
                process.kill()
                process.wait(ORPHAN_TIMEOUT_S)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has just ended, or is another user's
