"""MLflow loads an exported policy, or a checkpoint that it knows by reference, and its predictions are actions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from program import TOY
from toy_source import ToySource

import vlatrack
from vlatrack import Observation, Policy
from vlatrack.errors import CheckpointError, ObservationError
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.export import log_policy
from vlatrack.runner.pyfunc import PyfuncPolicy, _load_pyfunc

EPISODE = ToySource().episodes()[0]
FRAMES = ToySource().frames(EPISODE, "front")
SHORT = ("train.max_steps=2", "evaluate.open_loop=null", "tracking.system_every_s=null")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pyfunc")
    run = vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=folder / "runs")
    vlatrack.export(run.path, folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def loaded(policy: Path) -> PyfuncPolicy:
    return _load_pyfunc(str(policy), {"device": "cpu"})


def row(step: int, **changed: Any) -> dict[str, Any]:
    return {"images": {"front": FRAMES[step]}, "instruction": EPISODE.task, "state": EPISODE.states[step]} | changed


def test_predictions_are_the_actions_of_the_policy(policy: Path, loaded: PyfuncPolicy) -> None:
    acting = Policy.load(policy, device="cpu")
    expected = [
        acting.act(Observation({"front": FRAMES[step]}, EPISODE.task, EPISODE.states[step])).actions for step in (0, 4)
    ]
    assert np.array_equal(loaded.predict(row(0)), expected[0])
    assert loaded.predict([row(0), row(4)]) == pytest.approx(np.stack(expected), abs=1e-5)
    as_json = json.loads(json.dumps(row(0, images={"front": FRAMES[0].tolist()}, state=EPISODE.states[0].tolist())))
    assert loaded.predict(as_json) == pytest.approx(expected[0], abs=1e-5)
    tokens = _load_pyfunc(str(policy), {"route": "tokens", "device": "cpu"}).predict(row(0))
    assert np.array_equal(tokens, acting.act(loaded_observation(), route="tokens").actions)


def loaded_observation() -> Observation:
    return Observation({"front": FRAMES[0]}, EPISODE.task, EPISODE.states[0])


@pytest.mark.parametrize(
    ("model_input", "told"),
    [
        ([], "give an observation, or a list of them"),
        ("text", "give an observation, or a list of them"),
        (row(0, prompt="push"), "has prompt, which no policy takes"),
        (row(0, images=FRAMES[0]), "has no images; give a mapping"),
        (row(0, images={"front": [[[300, 0, 0]]]}), "front is no RGB image"),
        (row(0, state=None), "lacks the proprioceptive state"),
    ],
)
def test_what_is_no_observation_is_one_line(loaded: PyfuncPolicy, model_input: Any, told: str) -> None:
    with pytest.raises(ObservationError, match=told) as raised:
        loaded.predict(model_input)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own registry
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # of MLflow's own types
def test_mlflow_loads_the_folder_and_the_checkpoint_of_a_run(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.tracking import MlflowClient

    from vlatrack.tracking.backends.mlflow.artifacts import MLFLOW_MODEL_IS_EXTERNAL

    spec = vlatrack.load_spec(TOY, [*SHORT, "tracking.backends=[{kind: mlflow}]"])
    run: RunDirectory = vlatrack.train(spec, runs=tmp_path / "runs")
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (model,) = client.search_logged_models(experiments)
    assert MLFLOW_MODEL_IS_EXTERNAL not in model.tags
    expected = mlflow.pyfunc.load_model(str(policy), model_config={"device": "cpu"}).predict(row(0))
    assert expected.shape == (3, 2)

    def of_the_run() -> Any:
        return mlflow.pyfunc.load_model(f"models:/{model.model_id}", model_config={"device": "cpu"}).predict(row(0))

    assert np.array_equal(of_the_run(), expected)
    vlatrack.export(run.path, tmp_path / "policy")
    checkpoints = run.path / "checkpoints"
    checkpoints.rename(run.path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is not on this machine, and the tracker has no copy"):
        of_the_run()
    (run.path / "elsewhere").rename(checkpoints)
    assert log_policy(run.path, tmp_path / "policy").complete
    checkpoints.rename(run.path / "elsewhere")
    assert np.array_equal(of_the_run(), expected)


def test_an_export_is_logged_to_the_trackers_of_a_run_that_has_ended(policy: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run or checkpoint of one, so that no tracker knows it"):
        log_policy(policy, policy)
