"""The processes of the wandb library, `wandb-core`: found, forgotten when they died, and ended."""

import contextlib
import os
from pathlib import Path

import psutil
import wandb

ORPHAN_TIMEOUT_S = 10.0


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
