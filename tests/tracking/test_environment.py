"""What the variables of wandb and mlflow do to a run: what they do in the library, or nothing, or they are refused."""

import os
import re
import shutil
from pathlib import Path

import mlflow.environment_variables
import pytest
import wandb
from happens import happens
from mlflow.tracking import MlflowClient
from wandb_double import WandbDouble

from vlatrack.errors import TrackerError
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.destinations import remember_starts, target_of
from vlatrack.tracking.backends.environment import VARIABLES, Treatment, configure_libraries
from vlatrack.tracking.backends.registry import backends_text, check_backend, connect, notices_of
from vlatrack.tracking.backends.wandb.account import NO_KEY
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.run import start_run
from vlatrack.tracking.run_files import RunFiles

KNOWN = {name for variables in VARIABLES for name in variables.names.split()}
WANDB = BackendConfig("wandb")
_NAMED_OTHERWISE = {
    "root_dir": "DIR",
    "run_name": "NAME",
    "run_notes": "NOTES",
    "run_tags": "TAGS",
    "email": "USER_EMAIL",
}


def test_every_setting_of_wandb_that_a_variable_can_change_is_in_the_table() -> None:
    settings = [name for name in wandb.Settings.model_fields if not name.startswith("x_")]
    names = {f"WANDB_{name.upper()}" for name in settings}
    names |= {f"WANDB_{name}" for setting, name in _NAMED_OTHERWISE.items() if setting in settings}
    missing = {name for name in names if name not in KNOWN and name != "WANDB_APP_URL_OVERRIDE"}
    assert missing == set()


def test_every_variable_of_mlflow_about_runs_and_the_way_to_the_server_is_in_the_table() -> None:
    about = re.compile(
        r"MLFLOW_(TRACKING|EXPERIMENT|RUN|HTTP_RE|REGISTRY|WORKSPACE$|ENABLE_ASYNC_LOGGING|ACTIVE_MODEL)"
    )
    names = {name for name in vars(mlflow.environment_variables) if about.match(name)}
    assert names - KNOWN == set()
    assert len(names) > 15


@pytest.mark.parametrize(
    ("kind", "name", "value", "told"),
    [
        ("wandb", "WANDB_MODE", "disabled", "WANDB_MODE=disabled: it turns W&B off; take `kind: wandb` out"),
        ("wandb", "WANDB_MODE", "of", "WANDB_MODE=of: choose online or offline"),
        ("wandb", "WANDB_DISABLED", "true", "WANDB_DISABLED is set: it turns W&B off"),
        ("wandb", "WANDB_SWEEP_ID", "abc", "WANDB_SWEEP_ID is set: sweeps and jobs of W&B cannot start a run"),
        ("wandb", "WANDB_RUN_ID", "abc", "WANDB_RUN_ID is set: the id of a W&B run is that of the run"),
        ("mlflow", "MLFLOW_RUN_ID", "abc", "MLFLOW_RUN_ID is set: a run of vlatrack makes its own run"),
        ("mlflow", "MLFLOW_EXPERIMENT_ID", "7", "MLFLOW_EXPERIMENT_ID is set: name the experiment instead"),
    ],
)
@happens(
    "place",
    "a variable of W&B or MLflow asks for what vlatrack cannot give, such as `WANDB_SWEEP_ID` or `MLFLOW_RUN_ID`",
    "one line says so before the training begins",
)
def test_a_variable_that_asks_for_the_impossible_is_one_line_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv(name, value)
    with pytest.raises(TrackerError, match=re.escape(told)) as error:
        start_run("exp", runs=tmp_path / "runs", backends=[kind])
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    check_backend(BackendConfig("tensorboard"))


@pytest.mark.parametrize(
    ("word", "mode"), [("online", "online"), ("shared", "online"), ("offline", "offline"), ("dryrun", "offline")]
)
def test_wandb_mode_says_whether_a_run_with_a_key_goes_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", word)
    assert target_of(WANDB, tmp_path).started_with["mode"] == mode
    explicit = BackendConfig("wandb", options={"mode": "online"})
    assert target_of(explicit, tmp_path).started_with["mode"] == "online"


def test_a_run_is_not_synced_to_wandb_while_it_is_turned_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ExampleRun(tmp_path)
    run.finish("FINISHED")
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text(remember_starts([WANDB], [], files.runs)))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (share,) = sync_run(run.dir).backends
    assert share.undelivered == 2
    assert "WANDB_MODE=disabled: it turns W&B off" in str(share.error)
    assert not (run.dir / "wandb").exists()


def test_a_resumed_run_whose_key_is_missing_is_not_said_to_be_written_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    started = remember_starts([WANDB], [], tmp_path)
    monkeypatch.delenv("WANDB_API_KEY")
    (resumed,) = remember_starts([WANDB], started, tmp_path)
    (told,) = notices_of(resumed, tmp_path / "e" / "r")
    assert told.startswith("wandb: meant for W&B at")
    assert notices_of(WANDB, tmp_path / "e" / "r") == [NO_KEY]


def test_the_variables_that_describe_a_run_are_named_when_they_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert notices_of(WANDB, tmp_path / "e" / "r") == []
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (told,) = notices_of(WANDB, tmp_path / "e" / "r")
    assert told.startswith("wandb: WANDB_TAGS is ignored: name, tags and group")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "x")
    assert notices_of(BackendConfig("mlflow"), tmp_path / "e" / "r")[0].startswith("mlflow: MLFLOW_RUN_NAME is ignored")


def test_what_is_not_honoured_is_hidden_from_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dict.fromkeys(KNOWN, "x")
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    configure_libraries()
    honoured = {n for v in VARIABLES if v.treatment == Treatment.HONOURED for n in v.names.split()}
    assert {name for name in KNOWN if os.environ.get(name) == "x"} == honoured
    assert os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] == "false"


def test_a_run_at_wandb_is_the_same_whatever_the_environment_says_of_it(
    tmp_path: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ExampleRun(tmp_path, uid="u1")
    run.log(3)
    run.finish("FINISHED")
    files = RunFiles(run.dir)
    files.backends.write_text(backends_text([WANDB]))
    odd = {
        "SWEEP_ID": "s1", "RUN_ID": "other", "NAME": "other", "RUN_GROUP": "other", "JOB_TYPE": "other",
        "TAGS": "other", "RESUME": "must", "DIR": str(tmp_path / "other"), "CONSOLE": "wrap", "IGNORE_GLOBS": "*",
        "STRICT": "nonsense", "SERVICE": "3-1-tcp-localhost-1", "FORK_FROM": "other?_step=1", "CONFIG": "{",
        "HEARTBEAT_SECONDS": "nonsense", "PROJECT": "mine",
    }  # fmt: skip
    for name, value in odd.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    assert sync_run(run.dir).complete
    stored = wandb_server.runs["u1"]
    assert (stored.display_name, stored.group, stored.job_type, stored.tags) == ("run-1", "contract", None, ["by:test"])
    assert (len(stored.rows), stored.state, stored.project) == (3, "finished", "mine")
    assert not (tmp_path / "other").exists()


def test_a_run_in_mlflow_goes_to_the_experiment_that_the_environment_names(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ExampleRun(tmp_path)
    run.log(3)
    store = run.dir.parent.parent / "mlflow.db"
    shutil.copy(empty_store, store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # `vlatrack sync` is not refused
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    (started,) = remember_starts([BackendConfig("mlflow")], [], RunFiles(run.dir).runs)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    backend = connect(started, run.dir)
    backend.open(run.start_value(), -1)
    backend.deliver(run.metrics())
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.data.metrics["train_loss_ct"] == 2 / 7
