"""Where a sweep lies: its folder below the runs, and the database that its workers share."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.tracking.lock import FileLock
from vlatrack.tracking.privacy import redact

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

STORAGE = "VLATRACK_SWEEP_STORAGE"
"""The environment variable with the database of sweeps on many machines, as postgresql+psycopg2://user:key@host/name."""

_LOCKED_S = 60
"""So long a process waits for another one that writes to SQLite, or begins a trial."""
_TRIES, _PAUSE_S = 5, 1.0


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep."""

    runs: Path
    name: str

    @property
    def path(self) -> Path:
        return self.runs / "sweeps" / self.name

    @property
    def database(self) -> Path:
        return self.path / "study.db"

    @property
    def page(self) -> Path:
        return self.path / "index.html"

    @property
    def table(self) -> Path:
        return self.path / "trials.csv"

    @property
    def best(self) -> Path:
        """The experiment files of the best configurations."""
        return self.path / "best"

    def log(self, trial: int, seed: int) -> Path:
        """What the process of a run has printed."""
        return self.path / "logs" / f"trial-{trial:05d}-seed-{seed}.log"

    def create(self) -> None:
        """Make the folders, for this user alone, as a run's."""
        for folder in (self.path, self.best, self.path / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self) -> FileLock:
        """Held while a trial begins or is taken over, so that no two workers do that at once."""
        return FileLock.acquire(self.path / "trials.lock", timeout_s=_LOCKED_S)

    def run_dir(self, relative: str) -> Path | None:
        """A run that the database names; None if the name leads out of the runs folder, which no worker writes."""
        path = (self.runs / relative).resolve()
        return path if path.is_relative_to(self.runs.resolve()) else None


def check_optuna() -> None:
    """Check that Optuna is there.

    Raises:
        MissingPackageError: it is not.
    """
    try:
        import optuna
    except ImportError:
        raise MissingPackageError("sweeps need Optuna, which is not installed: pip install 'vlatrack[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def open_storage(folder: SweepFolder) -> "RDBStorage":
    """The database that the environment names, else SQLite in the folder of the sweep.

    Raises:
        TrackerError: it cannot be opened.
        MissingPackageError: its driver is not installed.
    """
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

    url = os.environ.get(STORAGE)
    options = {} if url else {"connect_args": {"timeout": _LOCKED_S}}
    address = url or f"sqlite:///{folder.database.resolve()}"
    try:
        for _ in range(_TRIES):
            with suppress(IntegrityError, ProgrammingError):  # a worker on another machine makes the tables just now
                return RDBStorage(address, engine_kwargs=options)
            time.sleep(_PAUSE_S)
        return RDBStorage(address, engine_kwargs=options)
    except ImportError as error:
        raise MissingPackageError(
            f"{STORAGE}: the driver of this database is not installed ({error}); pip install psycopg2-binary"
        ) from None
    except (SQLAlchemyError, StorageInternalError, RuntimeError, ValueError) as error:
        raise _storage_error(folder, error) from None


@contextmanager
def telling_storage_errors(folder: SweepFolder) -> Iterator[None]:
    """What the database refuses, as a TrackerError of one line."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise _storage_error(folder, error) from error


def _storage_error(folder: SweepFolder, error: Exception) -> TrackerError:
    cause = str(error.__cause__ or error).split("\n[SQL", 1)[0].split("\n(Background", 1)[0]
    remedy = f"check the address in {STORAGE}" if os.environ.get(STORAGE) else "is the folder writable, the disk full?"
    return TrackerError(f"{storage_name(folder)}: cannot be used ({redact(' '.join(cause.split()))}); {remedy}")


def storage_name(folder: SweepFolder) -> str:
    """The database in a message, without its login."""
    url = os.environ.get(STORAGE)
    if not url:
        return str(folder.database)
    parts = urlsplit(url)
    if not parts.scheme:
        return f"the database in {STORAGE}"
    return f"{parts.scheme.partition('+')[0]} at {parts.hostname or 'this machine'}{parts.path}"
