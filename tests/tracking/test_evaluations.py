"""Evaluations at the trackers: metrics on the checkpoint and its data, the table of episodes, videos, lineage."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from fault_proxy import Fault, FaultProxy
from happens import happens
from mlflow.entities import LoggedModel, Run
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from wandb_double import WANDB_KEY, WandbDouble
from wandb_file import offline_artifacts

from vlatrack.errors import TrackerError
from vlatrack.tracking.artifacts import read_artifact
from vlatrack.tracking.backends.base import BackendConfig, DatasetInput, RejectedError, RunEvent, RunFinish
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.backends.wandb.artifacts import bundle_of
from vlatrack.tracking.delivery.others import deliver_record
from vlatrack.tracking.delivery.report import DeliveryReport
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.evaluated import EVALUATION_SET, Evaluated, Result
from vlatrack.tracking.journal.history import first_start, last_event
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind, read_records
from vlatrack.tracking.run import TrackedRun

NAME, DIGEST = "evaluation/arena-step-00000007", "ab" * 32
EPISODES = DatasetInput("arena", '{"set": {"episodes": 2}}', DIGEST, EVALUATION_SET)
METRICS = {"sim/arena/success": 0.5, "sim/arena/push/success": 0.0, "sim/arena/success_low": float("nan")}
ROWS = [["failure", "push", "videos/failure-1.mp4", 7], ["success", "pull", "", 3]]


def evaluate(
    run_dir: Path, *backends: BackendConfig, uid: str = "u1", timeout_s: float = 60, by_expert: bool = False
) -> DeliveryReport:
    """Log a run with one checkpoint, evaluated in a simulator."""
    run = TrackedRun.start(run_dir, uid=uid, name="n", experiment="exp", backends=backends, params={}, tags={})
    run.log({"train_closs": 0.25}, step=7)
    run.event("checkpoint", {"name": "step-00000007", "step": 7, "epoch": 1, "policy_sha256": "cd" * 32})
    folder = run_dir / NAME
    (folder / "videos").mkdir(parents=True)
    (folder / "videos" / "failure-1.mp4").write_bytes(b"a video")
    (folder / "episodes.json").write_text(json.dumps({"columns": ["outcome", "task", "video", "steps"], "data": ROWS}))
    (folder / "workers.log").write_text("what nobody needs to see")
    run.log_artifact(folder, name=NAME, only=["episodes.json", "videos"], table="episodes.json")
    run.log(METRICS, step=7, t_ms=1_700_000_000_000)
    saved = last_event(run_dir / "journal.jsonl", "checkpoint", {"policy_sha256": "cd" * 32})
    assert saved is not None
    seq = None if by_expert else saved.seq
    results = (Result(EPISODES, METRICS),)
    evaluated = Evaluated("step-00000007", 7, None if by_expert else "cd" * 32, 1_700_000_000_000, results, seq)
    run.event("simulation", {"name": "arena", **evaluated.data})
    return run.finish("FINISHED", timeout_s=timeout_s)


def deliver(run_dir: Path, config: BackendConfig) -> None:
    """All of the journal, in this process."""
    journal = run_dir / "journal.jsonl"
    with contextlib.closing(connect(config, run_dir)) as backend:
        backend.open(first_start(journal), -1)
        for record in read_records(journal):
            if record.kind == Kind.FINISH:
                backend.finish(RunFinish.of(record))
            else:
                assert deliver_record(backend, run_dir, record) == []


def in_mlflow(uri: str, uid: str = "u1") -> tuple[Run, LoggedModel]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("exp")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`vlatrack.uid` = '{uid}'")
    (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return run, model


def local_store(run_dir: Path) -> str:
    return f"sqlite:///{run_dir.parent.parent / 'mlflow.db'}"


def test_mlflow_ties_the_metrics_to_the_checkpoint_and_to_the_episode_set(stored_run_dir: Path) -> None:
    evaluate(stored_run_dir)
    deliver(stored_run_dir, BackendConfig("mlflow"))
    run, model = in_mlflow(local_store(stored_run_dir))
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("arena (evaluation)", DIGEST[:8])
    assert [tag.value for tag in used.tags] == ["evaluation"]
    assert json.loads(used.dataset.source) == {"source": EPISODES.source}
    assert json.loads(used.dataset.profile) == {"sha256": DIGEST, "set.episodes": "2"}
    found = {m.key: (m.value, m.step, m.dataset_name, m.dataset_digest) for m in model.metrics}
    data = ("arena (evaluation)", DIGEST[:8])
    assert found == {
        "train_closs": (0.25, 7, None, None),
        "sim/arena/success": (0.5, 7, *data),
        "sim/arena/push/success": (0.0, 7, *data),
    }
    assert model.params["policy_sha256"] == "cd" * 32
    assert run.data.metrics["sim/arena/success"] == 0.5
    deliver(stored_run_dir, BackendConfig("mlflow"))
    again, same_model = in_mlflow(local_store(stored_run_dir))
    assert sorted(map(str, same_model.metrics)) == sorted(map(str, model.metrics)), "a replay adds nothing"
    assert (again.data.tags, len(again.inputs.dataset_inputs)) == (run.data.tags, 1)
    assert len(MlflowClient(local_store(stored_run_dir)).get_metric_history(run.info.run_id, "sim/arena/success")) == 1


def test_the_metrics_of_an_expert_are_none_of_the_checkpoint(stored_run_dir: Path) -> None:
    evaluate(stored_run_dir, by_expert=True)
    deliver(stored_run_dir, BackendConfig("mlflow"))
    run, model = in_mlflow(local_store(stored_run_dir))
    assert [metric.key for metric in model.metrics] == ["train_closs"]
    assert len(run.inputs.dataset_inputs) == 1


def test_mlflow_loads_the_table_of_episodes_and_has_no_file_that_was_not_chosen(
    stored_run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(stored_run_dir)
    deliver(stored_run_dir, BackendConfig("mlflow"))
    run, _ = in_mlflow(local_store(stored_run_dir))
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    assert files == [f"{NAME}/episodes.json", f"{NAME}/videos/failure-1.mp4"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", local_store(stored_run_dir))
    table = MlflowClient().load_table(run.info.experiment_id, f"{NAME}/episodes.json", [run.info.run_id])
    assert table.to_dict("split")["columns"] == ["outcome", "task", "video", "steps"]
    assert table.to_numpy().tolist() == ROWS
    assert mlflow.get_tracking_uri() == local_store(stored_run_dir)


def test_wandb_has_table_and_videos_in_one_artifact_and_the_episode_set_as_an_input(
    stored_run_dir: Path, wandb_server: WandbDouble
) -> None:
    evaluate(stored_run_dir)
    deliver(stored_run_dir, BackendConfig("wandb"))
    kinds = {known["asked"]["artifactTypeName"]: known for known in wandb_server.artifacts.values()}
    assert kinds.keys() == {"evaluation", "episode-set"}
    assert {known["state"] for known in kinds.values()} == {"COMMITTED"}
    assert kinds["episode-set"]["asked"]["artifactCollectionName"] == "episode-set-arena"
    assert kinds["evaluation"]["asked"]["artifactCollectionName"] == "u1-evaluation-arena-step-00000007"
    assert wandb_server.used == {"u1": [kinds["episode-set"]["asked"]["artifactCollectionName"]]}
    manifests = [json.loads(body)["contents"] for path, body in wandb_server.uploads.items() if "/manifest-" in path]
    contents = next(contents for contents in manifests if "episodes.table.json" in contents)
    assert contents.keys() == {"episodes.json", "episodes.table.json", "videos/failure-1.mp4"}
    (table,) = [body for path, body in wandb_server.uploads.items() if path.endswith("episodes.table.json")]
    (failure, success) = json.loads(table)["data"]
    assert (failure[2]["_type"], failure[2]["path"]) == ("video-file", "videos/failure-1.mp4")
    assert (failure[:2], success) == (ROWS[0][:2], ["success", "pull", None, 3])
    assert b"a video" in wandb_server.uploads.values()


def test_a_table_that_cannot_be_read_is_refused_by_wandb(stored_run_dir: Path, wandb_server: WandbDouble) -> None:
    del wandb_server
    for content in ("{", "[]", '{"columns": ["a"]}', '{"columns": ["a"], "data": [1]}'):
        (stored_run_dir / "t.json").write_text(content)
        table = replace(read_artifact("t.json", "t.json", stored_run_dir), table="t.json")
        with pytest.raises(RejectedError, match=r"t\.json: no table with columns and data"):
            bundle_of("u-t.json", "t", table, ())


@pytest.mark.slow
def test_wandb_without_a_key_writes_the_table_and_gets_the_input_with_the_key(
    stored_run_dir: Path, wandb_server: WandbDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    evaluate(stored_run_dir)
    deliver(stored_run_dir, BackendConfig("wandb"))
    (file,) = (stored_run_dir / "wandb").glob("offline-run-*/*.wandb")
    assert offline_artifacts(file) == ["u1-evaluation-arena-step-00000007"]
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    deliver(stored_run_dir, BackendConfig("wandb"))
    assert wandb_server.used == {"u1": ["episode-set-arena"]}


@pytest.mark.slow
@happens(
    "server",
    "MLflow and W&B cannot be reached when an evaluation in a simulator ends",
    "its metrics, table and videos arrive later, each once, and stand with the checkpoint and the episode set",
)
def test_table_videos_and_metrics_arrive_after_both_trackers_were_down(
    stored_run_dir: Path,
    mlflow_server: MlflowServer,
    wandb_server: WandbDouble,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., None],
) -> None:
    with FaultProxy(mlflow_server.url) as at_mlflow, FaultProxy(wandb_server.url) as at_wandb:
        at_mlflow.fault = at_wandb.fault = Fault("status", 503)
        monkeypatch.setenv("WANDB_BASE_URL", at_wandb.url)
        options = {"tracking_uri": at_mlflow.url}
        backends = (BackendConfig("mlflow", options=options), BackendConfig("wandb"))
        report = evaluate(stored_run_dir, *backends, uid="down", timeout_s=20)
        assert [share.delivered for share in report.backends] == [0, 0]
        assert at_mlflow.counts["status"] > 0
        assert at_wandb.counts["status"] > 0
        # From now on every third request fails, also one of which the server has stored everything.
        faults = [None, None, Fault("status", 500), None, None, Fault("cut")]
        at_mlflow.fault = at_wandb.fault = None
        at_mlflow.script.extend(faults * 10)
        assert sync_run(stored_run_dir).complete
    run, model = in_mlflow(mlflow_server.url, "down")
    assert {m.key: m.dataset_name for m in model.metrics}["sim/arena/success"] == "arena (evaluation)"
    assert len(model.metrics) == 3
    assert run.data.metrics["sim/arena/success"] == 0.5
    files = [file.path for file in MlflowClient(mlflow_server.url).list_artifacts(run.info.run_id, f"{NAME}/videos")]
    assert files == [f"{NAME}/videos/failure-1.mp4"]
    assert wandb_server.used == {"down": ["episode-set-arena"]}
    assert b"a video" in wandb_server.uploads.values()
    rows = wandb_server.runs["down"].rows
    assert [row["sim/arena/success"] for row in rows if "sim/arena/success" in row] == [0.5]


def test_of_many_tables_the_newest_stay_tables(stored_run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlatrack.tracking.backends.mlflow.artifacts.LONGEST_TAG", 80)
    run = TrackedRun.start(stored_run_dir, uid="u1", name="n", experiment="exp", backends=[], params={}, tags={})
    for number in range(3):
        (stored_run_dir / f"t{number}.json").write_text('{"columns": [], "data": []}')
        run.log_artifact(f"t{number}.json", name=f"t{number}.json", table=f"t{number}.json")
    run.finish("FINISHED")
    deliver(stored_run_dir, BackendConfig("mlflow"))
    client = MlflowClient(local_store(stored_run_dir))
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    tables = [entry["path"] for entry in json.loads(found.data.tags["mlflow.loggedArtifacts"])]
    assert tables == ["t1.json", "t2.json"]


def test_a_table_that_is_none_of_the_files_is_refused(stored_run_dir: Path) -> None:
    (stored_run_dir / "a").mkdir()
    (stored_run_dir / "a" / "b.json").write_text("{}")
    run = TrackedRun.start(stored_run_dir, uid="u", name="n", experiment="e", backends=[], params={}, tags={})
    with pytest.raises(TrackerError, match=r"artifact a: its table 'c.json' is none of its files"):
        run.log_artifact(stored_run_dir / "a", name="a", table="c.json")
    with pytest.raises(TrackerError, match=r"artifact a: only='b.json': not a list of texts"):
        run.log_artifact(stored_run_dir / "a", name="a", only="b.json")
    with pytest.raises(TrackerError, match="the folder is empty"):
        run.log_artifact(stored_run_dir / "a", name="a", only=["c.json"])
    run.finish("FINISHED")


def test_events_of_earlier_releases_are_no_evaluation_and_damaged_ones_are_refused() -> None:
    old = RunEvent("evaluation", {"checkpoint": "step-00000007", "step": 7, "policy_sha256": "ab"}, 1, 0)
    assert Evaluated.of(old) is None
    assert Evaluated.of(RunEvent("survey", {"results": "of somebody's own"}, 1, 0)) is None
    evaluated = Evaluated("step-00000007", 7, None, 5, (Result(EPISODES, {"sim/arena/success": 0.5}),))
    assert Evaluated.of(RunEvent("simulation", evaluated.data, 1, 0)) == evaluated
    results = "vlatrack.results"
    for damage in ({results: "[{}]"}, {results: "{"}, {"step": None}, {results: "[1]"}):
        with pytest.raises(RejectedError, match="no evaluation can be read from it"):
            Evaluated.of(RunEvent("simulation", {**evaluated.data, **damage}, 1, 0))


def test_the_last_event_with_these_values_is_found(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    journal = Journal.open(run_dir / "journal.jsonl", run="u", writer="trainer")
    for step in (1, 2, 1):
        journal.append(Kind.METRICS, {"train_closs": 0.5}, step=step)
        journal.append(Kind.EVENT, {"name": "checkpoint", "data": {"step": step}, "alert": False})
    journal.append(Kind.METRICS, {"train_closs": 0.5}, step=3)
    journal.close()
    found = [last_event(run_dir / "journal.jsonl", "checkpoint", {"step": step}) for step in (1, 2, 3)]
    assert [None if event is None else event.seq for event in found] == [5, 3, None]
