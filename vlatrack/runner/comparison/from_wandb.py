"""A run directory made again from what W&B holds of a run: its spec and manifest, which are artifacts, and metrics."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vlatrack.errors import DataError, SpecError, TrackerError
from vlatrack.metrics.grouping import documented_name
from vlatrack.runner.comparison.from_tracker import FILES, LoggedValue, TrackedStart, plain_name, write_journal
from vlatrack.tracking.backends.environment import configure_libraries
from vlatrack.tracking.backends.wandb.account import NO_KEY_HERE, base_url, has_key, is_page_of
from vlatrack.tracking.privacy import private_directory, redact

if TYPE_CHECKING:
    from wandb import Api
    from wandb.apis.public import Run

PREFIX = "wandb:"
_ADDRESS = re.compile(r"https?://[^/]+/[^/?#]+/[^/?#]+/runs/[^/?#]+.*")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. -]*")
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_LARGEST_FILE = 64 << 20
"""Bytes."""
_TIMEOUT_S = 20


def names_wandb_run(word: str) -> bool:
    """Whether a word means a run that W&B has: `wandb:…`, or the address of its page there."""
    return word.startswith(PREFIX) or _ADDRESS.fullmatch(word) is not None


@contextmanager
def run_of_wandb(word: str) -> Iterator[Path]:
    """A private run directory, for as long as the block lasts, of the run `wandb:ENTITY/PROJECT/RUN_ID`, or of that on
    the page with this address, of the W&B server in use.

    Raises:
        SpecError: the word names no run, or W&B has none of this id.
        TrackerError: there is no key, or W&B does not answer.
        DataError: what W&B has is no run of vlatrack.
    """
    from vlatrack.tracking.backends.wandb.clients import said_by

    entity, project, run_id = _named(word)
    server = base_url()
    if not has_key(server):
        raise TrackerError(f"{word}: {NO_KEY_HERE.format(server=redact(server))}")
    configure_libraries()
    with tempfile.TemporaryDirectory(prefix="vlatrack-wandb-") as temporary:
        os.environ["WANDB_DIR"] = temporary  # where the library makes a folder for each run that is asked for
        try:
            with said_by(server, "does not hand it out"):
                folder = _made_again(word, f"{entity}/{project}/{run_id}", Path(temporary))
        finally:
            os.environ.pop("WANDB_DIR", None)
        yield folder


def _named(word: str) -> tuple[str, str, str]:
    """Entity, project and id of the run."""
    named = word.removeprefix(PREFIX)
    if _ADDRESS.fullmatch(named) is not None:
        address = urlsplit(named)
        if not is_page_of(named, base_url()):
            where = f"{address.scheme}://{address.netloc}"
            raise SpecError(f"{word}: is not at {redact(base_url())}; set WANDB_BASE_URL={where}")
        _, entity, project, _, run_id, *_ = address.path.split("/")
        parts = [entity, project, run_id]
    else:
        parts = named.split("/")
    if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
        raise SpecError(f"{word}: expected wandb:ENTITY/PROJECT/RUN_ID, or the address of the run's page")
    return parts[0], parts[1], parts[2]


def _made_again(word: str, path: str, temporary: Path) -> Path:
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    api = wandb.Api(timeout=_TIMEOUT_S)
    try:
        run = api.run(path)
    except wandb.errors.CommError as error:
        if "Could not find run" not in str(error):
            raise
        raise SpecError(f"{word}: {redact(base_url())} has no such run, or not one that this key may see") from None
    folder = private_directory(temporary / "wandb" / (plain_name(run.name or "") or run.id))
    for name in FILES:
        _download(api, run, name, folder, word)
    values = list(_values(run))
    write_journal(folder, _start(run, folder, values), values)
    return folder


def _download(api: "Api", run: "Run", name: str, folder: Path, word: str) -> None:
    """Download the newest version of a file that was logged as an artifact of its name."""
    import wandb

    from vlatrack.tracking.backends.wandb.artifacts import collection_of

    place = f"{run.entity}/{run.project}/{collection_of(run.id, name)}:latest"
    try:
        entry = api.artifact(place).get_entry(name)
    except (wandb.errors.CommError, KeyError) as error:
        if isinstance(error, wandb.errors.CommError) and "not found" not in str(error):
            raise
        told = f"W&B has no {name} of it, so it is no run of vlatrack, or is not delivered yet"
        raise DataError(f"{word}: {told}") from None
    if entry.ref is not None:  # which may be to any file here
        raise DataError(f"{word}: W&B has no copy of {name}, but where it is (tracking.backends: copy_up_to_mb)")
    if not 0 < (entry.size or 0) <= _LARGEST_FILE:
        raise DataError(f"{word}: {name} at W&B is none that vlatrack has written")
    entry.download(str(folder), skip_cache=True)


def _start(run: "Run", folder: Path, values: list[LoggedValue]) -> TrackedStart:
    from vlatrack.spec.load import load_spec  # takes half a second

    tags = run.config.get("tags")
    times = [value.t_ms for value in values] or [0]
    began = datetime.fromisoformat(run.created_at)
    began = began if began.tzinfo is not None else began.replace(tzinfo=UTC)
    return TrackedStart(
        tracker="wandb",
        run_id=run.id,
        experiment=load_spec(folder / "spec.yaml", stored=True).name,
        tags={str(key): str(text) for key, text in tags.items()} if isinstance(tags, dict) else {},
        began_ms=min(int(began.timestamp() * 1000), *times),
        ended_ms=max(times),
        status=_STATUS.get(run.state, run.state),
    )


def _values(run: "Run") -> Iterator[LoggedValue]:
    from vlatrack.tracking.backends.wandb.backend import X_AXIS, name_of_wandb_key
    from vlatrack.tracking.backends.wandb.values import stored_values

    for value in stored_values(run, X_AXIS):
        yield LoggedValue(documented_name(name_of_wandb_key(value.key)), value.t_ms, value.step, value.value)
