"""What `mlflow.pyfunc.load_model` loads a policy with: an exported folder, or a checkpoint known by reference."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import CheckpointError, ObservationError
from vlatrack.inference.observation import Observation
from vlatrack.inference.policy import ActingPolicy, Route
from vlatrack.runner.acting import Policy
from vlatrack.tracking.backends.mlflow.model_files import REFERENCE
from vlatrack.training.checkpoint.manifest import FILES, read_manifest

_PARTS = ("images", "instruction", "state")


class PyfuncPolicy:
    """A policy behind MLflow's `predict`."""

    def __init__(self, policy: ActingPolicy, route: Route) -> None:
        self.policy, self._route = policy, route

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.float64]:
        """The actions of one observation [H, A], or of several [B, H, A], in the units of the training data.

        Args:
            model_input: a mapping with `images` (RGB arrays, or nested lists, by camera), `instruction` and, where the
                policy has one, `state`; a list of such, or a table with these columns.
            params: none are known.

        Raises:
            ObservationError: it is none of these, or not what the policy was trained on.
        """
        if isinstance(model_input, Mapping):
            return self.policy.act(_observation(model_input), route=self._route).actions
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
            raise ObservationError(f"predict: give an observation, or a list of them: {', '.join(_PARTS)}")
        chunks = self.policy.act_batch([_observation(row) for row in rows], route=self._route)
        return np.stack([chunk.actions for chunk in chunks])


def _observation(row: Mapping[str, Any]) -> Observation:
    if unknown := [str(name) for name in row if name not in _PARTS]:
        raise ObservationError(f"observation: has {', '.join(unknown)}, which no policy takes; use {', '.join(_PARTS)}")
    images, state = row.get("images"), row.get("state")
    if not isinstance(images, Mapping):
        raise ObservationError("observation: has no images; give a mapping of cameras to RGB arrays")
    return Observation(
        {camera: _image(camera, image) for camera, image in images.items()},
        row.get("instruction", ""),
        None if state is None else np.asarray(state),
    )


def _image(camera: str, image: Any) -> Any:
    """An array as it is; nested lists of whole numbers, as JSON has them, as uint8."""
    if not isinstance(image, list):
        return image
    try:
        return np.array(image, np.uint8)  # refuses what is no whole number from 0 to 255
    except (ValueError, TypeError, OverflowError) as error:
        raise ObservationError(f"observation: the image of {camera} is no RGB image ({error})") from error


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PyfuncPolicy:
    """Called by MLflow, which names it.

    Args:
        path: the model's folder.
        model_config: `route` (head or tokens) and `device`.
    """
    config, folder = {"route": "head", "device": "auto", **(model_config or {})}, Path(path)
    if (folder / REFERENCE).is_file():
        folder = _referenced(folder / REFERENCE)
    return PyfuncPolicy(Policy.load(folder, device=config["device"]), config["route"])


def _referenced(file: Path) -> Path:
    """The policy that a reference names: the checkpoint where the training has left it, or the tracker's copy.

    Raises:
        CheckpointError: there is neither.
    """
    reference = json.loads(file.read_text())
    checkpoint, digest = Path(reference["checkpoint"]), reference["policy_sha256"]
    if (checkpoint / FILES).is_file() and read_manifest(checkpoint).policy_sha256 == digest:
        return checkpoint
    from mlflow.artifacts import download_artifacts, list_artifacts

    for copy in reference["copies"]:
        if any(Path(found.path).name == FILES for found in list_artifacts(copy)):
            return Path(download_artifacts(copy))
    raise CheckpointError(
        f"policy {digest[:12]}: lies in {checkpoint}, which is not on this machine, and the tracker has no copy; "
        "there, vlatrack export RUN FOLDER --log copies it"
    )
