"""The data of a run as MLflow's datasets."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mlflow.entities import Dataset, InputTag, Run
from mlflow.entities import DatasetInput as MlflowDatasetInput
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from vlatrack.tracking.backends.base import DatasetInput, RejectedError
from vlatrack.tracking.backends.mlflow.runs import Refused, verdicts

LONGEST_NAME = 500
SHOWN_DIGEST, LONGEST_DIGEST = 8, 36
"""Hexadecimal digits: as many as MLflow's own digests have, of which it shows all beside the name, and as earlier
releases stored. The whole SHA-256 is on the dataset's own page."""


def dataset_of(run: Run, data: DatasetInput) -> Dataset:
    """As MLflow keeps it, which tells datasets apart by name and digest: splits of the same files need names of their
    own. A run that has it as an earlier release wrote it keeps that one."""
    name = f"{data.name} ({data.split})"[:LONGEST_NAME]
    known = {(used.dataset.name, used.dataset.digest) for used in run.inputs.dataset_inputs}
    has_earlier = (name, data.sha256[:LONGEST_DIGEST]) in known
    return Dataset(
        name=name,
        digest=data.sha256[: LONGEST_DIGEST if has_earlier else SHOWN_DIGEST],
        source_type="vlatrack",
        source=json.dumps({"source": data.source}),
        profile=json.dumps({"sha256": data.sha256, **_settings(data.source)}),
    )


def _settings(source: str) -> dict[str, str]:
    """What MLflow's page of the dataset shows, a line each and the beginning of longer ones: the settings of a source
    that is JSON, by their paths."""
    try:
        content = json.loads(source)
    except (ValueError, RecursionError):
        return {"source": source}
    return dict(_flat(content, ""))


def _flat(content: Any, path: str) -> Iterator[tuple[str, str]]:
    if not isinstance(content, dict):
        yield path or "source", content if isinstance(content, str) else json.dumps(content)
        return
    for name, value in content.items():
        yield from _flat(value, f"{path}.{name}" if path else name)


def put_datasets(client: MlflowClient, run: Run, datasets: Sequence[DatasetInput]) -> Refused:
    """Make them inputs of the run, in the context of their split; returns those that MLflow refused."""
    refused: Refused = []
    for data in datasets:
        used = MlflowDatasetInput(dataset_of(run, data), [InputTag(MLFLOW_DATASET_CONTEXT, data.split)])
        try:
            with verdicts(client, run.info.run_id):
                client.log_inputs(run.info.run_id, [used])
        except RejectedError as verdict:
            refused.append((f"dataset {data.name}", str(verdict)))
    return refused
