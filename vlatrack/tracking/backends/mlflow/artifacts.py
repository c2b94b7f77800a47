"""Artifacts at MLflow: files are uploaded one by one, and a tag remembers how many of them are there."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import PurePosixPath

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.tracking import MlflowClient

from vlatrack.tracking.backends.base import Artifact, ArtifactFile, remote_path
from vlatrack.tracking.backends.copying import CHECKPOINTS, CopyRule, reference_text
from vlatrack.tracking.backends.mlflow.keys import mlflow_key

REFERENCE = ".reference.json"
"""Ends the name of what stands in the place of files that are not copied."""

LARGE = 100_000_000
SLOWEST_STORE_PER_S = 20_000_000
"""Bytes."""

_one_large_upload = threading.Lock()


def put_artifact(client: MlflowClient, run_id: str, artifact: Artifact, rule: CopyRule) -> None:
    """Upload what is not there yet.

    The tag of the artifact holds its SHA-256 when it is complete, before that also how many of its files are: an upload
    that was cut goes on with the file that was cut.
    """
    tag = mlflow_key(f"vlatrack.artifact.{artifact.name}")
    state = client.get_run(run_id).data.tags.get(tag, "")
    if state == artifact.sha256:
        return
    left = rule.by_reference(artifact)
    copied = [file for file in artifact.files if file not in left]
    for done in range(_done(state, artifact, len(copied)), len(copied)):
        _upload(client, run_id, artifact, copied[done])
        client.set_tag(run_id, tag, f"{artifact.sha256} {done + 1}/{len(copied)}")
    if artifact.name.startswith(CHECKPOINTS) and left:
        client.log_text(run_id, reference_text(artifact, left), f"{artifact.name}{REFERENCE}")
    else:
        for file in left:
            client.log_text(run_id, reference_text(artifact, [file]), f"{remote_path(artifact, file)}{REFERENCE}")
    client.set_tag(run_id, tag, artifact.sha256)


def _done(state: str, artifact: Artifact, total: int) -> int:
    """How many files an earlier attempt to upload just these has left there."""
    sha256, _, progress = state.partition(" ")
    done, _, of = progress.partition("/")
    return int(done) if sha256 == artifact.sha256 and of == str(total) else 0


def _upload(client: MlflowClient, run_id: str, artifact: Artifact, file: ArtifactFile) -> None:
    folder = PurePosixPath(remote_path(artifact, file)).parent.as_posix()
    with _patience(file.size) if file.size > LARGE else contextlib.nullcontext():
        client.log_artifact(run_id, str(file.path), None if folder == "." else folder)


@contextlib.contextmanager
def _patience(size: int) -> Iterator[None]:
    """A server puts a file into its store before it answers, which takes longer than any other request may take.

    MLflow's client reads its one patience for all requests from the environment, at each request.
    """
    with _one_large_upload:
        name, usual = MLFLOW_HTTP_REQUEST_TIMEOUT.name, MLFLOW_HTTP_REQUEST_TIMEOUT.get()
        os.environ[name] = str(usual + size // SLOWEST_STORE_PER_S)
        try:
            yield
        finally:
            os.environ[name] = str(usual)
