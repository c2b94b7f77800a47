"""A run directory made again from what MLflow holds of a run: its spec, manifest and metrics."""

import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.grouping import documented_name
from vlatrack.runner.comparison.from_tracker import FILES, LoggedValue, TrackedStart, plain_name, write_journal
from vlatrack.tracking.backends.destinations import MLFLOW_STORE, sqlite_uri
from vlatrack.tracking.backends.environment import configure_libraries
from vlatrack.tracking.privacy import private_directory, redact

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PREFIX = "mlflow:"
_RUN_ID = re.compile(r"[0-9a-f]{32}")


@contextmanager
def run_of_mlflow(word: str, runs: Path) -> Iterator[Path]:
    """A private run directory, for as long as the block lasts, of the run `mlflow:RUN_ID` of the server or database in
    MLFLOW_TRACKING_URI, or else of the store in ``runs``.

    Raises:
        SpecError: the word names no run, or MLflow has none of this id.
        DataError: what MLflow has is no run of vlatrack.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    configure_libraries()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    run_id = word.removeprefix(PREFIX)
    if _RUN_ID.fullmatch(run_id) is None:
        raise SpecError(f"{word}: expected mlflow: and the id of a run, 32 digits; MLflow shows it on the run's page")
    uri = _tracking_uri(word, runs)
    client = MlflowClient(uri)
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"{word}: {redact(uri)} has no such run, or does not answer ({redact(first)})") from None
    with tempfile.TemporaryDirectory(prefix="vlatrack-mlflow-") as temporary:
        folder = private_directory(Path(temporary) / "mlflow" / (plain_name(run.info.run_name or "") or run_id))
        try:
            _download(client, run_id, folder, word)
            write_journal(folder, _start(client, run), _values(client, run))
        except MlflowException as error:
            first = str(error).splitlines()[0]
            raise DataError(f"{word}: {redact(uri)} does not hand it out ({redact(first)}); try again later") from None
        yield folder


def _tracking_uri(word: str, runs: Path) -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    store = runs.absolute() / MLFLOW_STORE
    if uri:
        return uri
    if not store.is_file():
        raise SpecError(f"{word}: set MLFLOW_TRACKING_URI, or give the folder whose mlflow.db has the run with --runs")
    return sqlite_uri(store)


def _download(client: "MlflowClient", run_id: str, folder: Path, word: str) -> None:
    present = {file.path for file in client.list_artifacts(run_id)}
    if not present.issuperset(FILES):
        missing = ", ".join(name for name in FILES if name not in present)
        raise DataError(f"{word}: MLflow has no {missing} of it, so it is no run of vlatrack, or is not delivered yet")
    for name in FILES:
        client.download_artifacts(run_id, name, str(folder))


def _start(client: "MlflowClient", run: "Run") -> TrackedStart:
    from vlatrack.tracking.backends.mlflow.runs import tags_of

    return TrackedStart(
        tracker="mlflow",
        run_id=run.info.run_id,
        experiment=client.get_experiment(run.info.experiment_id).name,
        tags=tags_of(run),
        began_ms=int(run.info.start_time or 0),
        ended_ms=int(run.info.end_time or 0),
        status=run.info.status,
    )


def _values(client: "MlflowClient", run: "Run") -> Iterator[LoggedValue]:
    from vlatrack.tracking.backends.mlflow.values import LARGEST_DOUBLE, stored_values

    for value in stored_values(client, run):
        number = math.copysign(math.inf, value.value) if abs(value.value) >= LARGEST_DOUBLE else value.value
        yield LoggedValue(documented_name(value.key), value.t_ms, value.step, number)
