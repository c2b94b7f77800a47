"""A run directory made again from what MLflow holds of a run: its spec, manifest and metrics."""

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatrack.errors import DataError, SpecError
from vlatrack.metrics.grouping import documented_name
from vlatrack.spec.identity import Scalar, flatten
from vlatrack.tracking.backends.destinations import MLFLOW_STORE, sqlite_uri
from vlatrack.tracking.backends.environment import configure_libraries
from vlatrack.tracking.journal.encoding import encode
from vlatrack.tracking.journal.records import Kind
from vlatrack.tracking.privacy import private_directory, redact, write_private

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

PREFIX = "mlflow:"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_FILES = ("spec.yaml", "manifest.json")
_ENDS = {"FINISHED", "FAILED", "KILLED"}
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


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
        folder = private_directory(Path(temporary) / "mlflow" / (_plain(run.info.run_name or "") or run_id))
        try:
            _download(client, run_id, folder, word)
            lines = "".join(f"{encode(line)}\n" for line in _lines(client, run, folder))
        except MlflowException as error:
            first = str(error).splitlines()[0]
            raise DataError(f"{word}: {redact(uri)} does not hand it out ({redact(first)}); try again later") from None
        write_private(folder / "journal.jsonl", lines)
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
    if not present.issuperset(_FILES):
        missing = ", ".join(name for name in _FILES if name not in present)
        raise DataError(f"{word}: MLflow has no {missing} of it, so it is no run of vlatrack, or is not delivered yet")
    for name in _FILES:
        client.download_artifacts(run_id, name, str(folder))


def _lines(client: "MlflowClient", run: "Run", folder: Path) -> Iterator[dict[str, Any]]:
    """The records of its journal, as far as MLflow has them: the start, the metrics, and the end."""
    from vlatrack.tracking.backends.mlflow.values import LARGEST_DOUBLE, stored_values

    together: dict[tuple[int, int], dict[str, float]] = {}
    for value in stored_values(client, run):
        number = math.copysign(math.inf, value.value) if abs(value.value) >= LARGEST_DOUBLE else value.value
        together.setdefault((value.t_ms, value.step), {})[documented_name(value.key)] = number
    began, ended = int(run.info.start_time or 0), int(run.info.end_time or 0)
    start = {
        "name": folder.name,
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "params": _settings(folder),
        "tags": {key: text for key, text in run.data.tags.items() if not key.startswith("mlflow.")},
        "datasets": [],
        "group": None,
    }
    records: list[tuple[str, int, int | None, Mapping[str, Any]]] = [(Kind.START, began, None, start)]
    records += [(Kind.METRICS, t_ms, step, together[t_ms, step]) for t_ms, step in sorted(together)]
    if run.info.status in _ENDS:
        end = {"status": run.info.status, "reason": None, "deliver_until_ms": ended}
        records.append((Kind.FINISH, ended, None, end))
    for seq, (kind, t_ms, step, data) in enumerate(records):
        fixed = {"v": 1, "run": run.info.run_id, "writer": "mlflow", "seq": seq, "t_ms": t_ms, "kind": str(kind)}
        yield {**fixed, "step": step, "data": data}


def _settings(folder: Path) -> Mapping[str, Scalar]:
    """The flat settings with their types, which MLflow's params have lost."""
    from vlatrack.spec.load import load_spec  # takes half a second

    return flatten(load_spec(folder / "spec.yaml", stored=True))


def _plain(name: str) -> str:
    """A name that is a folder's, whatever somebody has called the run."""
    return _UNUSUAL.sub("_", name).strip("._")[:100]
