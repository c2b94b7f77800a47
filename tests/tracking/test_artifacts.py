"""What trackers copy of a run's files, and uploads that are cut."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from fault_proxy import Fault, FaultProxy
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer
from wandb_double import WandbDouble

from vlatrack.errors import TrackerError
from vlatrack.tracking.artifacts import KnownDigests, read_artifact
from vlatrack.tracking.backends.base import Backend, BackendConfig, RunStart
from vlatrack.tracking.backends.mlflow import artifacts as mlflow_artifacts
from vlatrack.tracking.backends.mlflow.runs import runs_with_uid
from vlatrack.tracking.backends.registry import connect
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.journal.journal import Journal
from vlatrack.tracking.journal.records import Kind, read_records
from vlatrack.tracking.privacy import private_directory
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles

MB = 1_000_000
GIB = 1 << 30


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def start(uid: str) -> RunStart:
    return RunStart(uid, uid, "artifacts", {}, {}, 1_700_000_000_000)


@pytest.fixture
def filled_run_dir(stored_run_dir: Path) -> Path:
    """A checkpoint of two small files, and a folder with a file of 1 MB and a larger one."""
    for name, size in (("checkpoints/step-1/a.bin", 10), ("checkpoints/step-1/b/c.bin", 20)):
        (stored_run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (stored_run_dir / name).write_bytes(b"w" * size)
    (stored_run_dir / "report").mkdir()
    for name, size in (("large.bin", MB + 1), ("small.bin", MB)):
        (stored_run_dir / "report" / name).touch()
        os.truncate(stored_run_dir / "report" / name, size)
    return stored_run_dir


def put_all(backend: Backend, run_dir: Path, uid: str = "u1") -> None:
    backend.open(start(uid), -1)
    for name in ("checkpoints/step-1", "report"):
        backend.put_artifact(read_artifact(name, name, run_dir))


def in_mlflow(run_dir: Path) -> dict[str, Path]:
    (root,) = (run_dir.parent.parent / "mlartifacts").glob("*/artifacts")
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


def test_mlflow_knows_checkpoints_and_large_files_by_reference(filled_run_dir: Path) -> None:
    put_all(connect(BackendConfig("mlflow", options={"copy_up_to_mb": 1}), filled_run_dir), filled_run_dir)
    stored = in_mlflow(filled_run_dir)
    assert sorted(stored) == [
        "checkpoints/step-1.reference.json",
        "report/large.bin.reference.json",
        "report/small.bin",
    ]
    weights = json.loads(stored["checkpoints/step-1.reference.json"].read_text())
    assert weights["files"] == [
        {"path": str(path), "size": size, "sha256": digest(path)}
        for path, size in (
            (filled_run_dir / "checkpoints/step-1/a.bin", 10),
            (filled_run_dir / "checkpoints/step-1/b/c.bin", 20),
        )
    ]
    (large,) = json.loads(stored["report/large.bin.reference.json"].read_text())["files"]
    assert (large["path"], large["size"]) == (str(filled_run_dir / "report" / "large.bin"), MB + 1)


def test_mlflow_copies_checkpoints_when_asked_whatever_their_size(filled_run_dir: Path) -> None:
    options = {"copy_checkpoints": True, "copy_up_to_mb": 0}
    put_all(connect(BackendConfig("mlflow", options=options), filled_run_dir), filled_run_dir)
    assert sorted(in_mlflow(filled_run_dir)) == [
        "checkpoints/step-1/a.bin",
        "checkpoints/step-1/b/c.bin",
        "report/large.bin.reference.json",
        "report/small.bin.reference.json",
    ]


def test_mlflow_has_more_patience_with_a_large_file_only_while_it_is_uploaded(
    filled_run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_artifacts, "SLOWEST_UPLOAD_PER_S", 10_000)
    seen: dict[str, str] = {}
    log_artifact = MlflowClient.log_artifact

    def noted(self: MlflowClient, run_id: str, path: str, *rest: str) -> None:
        seen[Path(path).name] = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]
        log_artifact(self, run_id, path, *rest)

    monkeypatch.setattr(MlflowClient, "log_artifact", noted)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    backend = connect(BackendConfig("mlflow"), filled_run_dir)
    backend.open(start("u1"), -1)
    backend.put_artifact(read_artifact("report", "report", filled_run_dir))
    backend.put_artifact(read_artifact("a.bin", "checkpoints/step-1/a.bin", filled_run_dir))
    assert seen == {"large.bin": "130", "small.bin": "130", "a.bin": "30"}
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"


@pytest.mark.parametrize("copies", [False, True])
def test_wandb_knows_checkpoints_by_reference_unless_asked(
    filled_run_dir: Path, wandb_server: WandbDouble, copies: bool
) -> None:
    options = {"copy_checkpoints": copies, "copy_up_to_mb": 1}
    backend = connect(BackendConfig("wandb", options=options), filled_run_dir)
    put_all(backend, filled_run_dir)
    backend.close()
    wandb.teardown()
    entries = {}
    for path, body in wandb_server.uploads.items():
        if path.startswith("/artifacts/manifest-"):
            entries |= json.loads(body)["contents"]
    ref = {name: entry["ref"] for name, entry in entries.items() if "ref" in entry}
    of_weights = {name: (filled_run_dir / "checkpoints/step-1" / name).as_uri() for name in ("a.bin", "b/c.bin")}
    of_report = {"large.bin": (filled_run_dir / "report/large.bin").as_uri()}
    assert ref == (of_report if copies else of_report | of_weights)
    assert (b"w" * 10 in wandb_server.uploads.values()) == copies
    asked = [artifact["asked"] for artifact in wandb_server.artifacts.values()]
    metadata = {a["artifactTypeName"]: json.loads(a["metadata"])["references"] for a in asked}
    weights = {"a.bin": {"size": 10, "sha256": hashlib.sha256(b"w" * 10).hexdigest()}}
    assert weights.items() <= metadata["checkpoints"].items() or copies
    assert metadata["report"]["large.bin"]["size"] == MB + 1


def test_wandb_sees_that_a_file_known_by_reference_has_changed(filled_run_dir: Path, wandb_server: WandbDouble) -> None:
    backend = connect(BackendConfig("wandb"), filled_run_dir)
    backend.open(start("u1"), -1)
    for content in (b"first", b"first", b"other"):
        (filled_run_dir / "checkpoints/step-1/a.bin").write_bytes(content)
        backend.put_artifact(read_artifact("checkpoints/step-1", "checkpoints/step-1", filled_run_dir))
    backend.close()
    wandb.teardown()
    assert len(wandb_server.artifacts) == 2


@pytest.mark.slow
def test_wandb_sends_only_the_file_again_whose_upload_was_cut(filled_run_dir: Path, wandb_server: WandbDouble) -> None:
    """What the client does by itself, within one attempt."""
    for index in range(4):
        (filled_run_dir / "report" / f"{index}.bin").write_bytes(bytes([index]) * MB)
    artifact = read_artifact("report", "report", filled_run_dir)
    uploads: list[str] = []

    def cut_the_third(method: str, path: str) -> Fault | None:
        uploads.extend([path.rpartition("/")[2]] if method == "PUT" else [])
        return Fault("cut_upload", after_bytes=MB // 2) if method == "PUT" and len(uploads) == 3 else None

    with FaultProxy(wandb_server.url) as proxy:
        proxy.choose = cut_the_third
        wandb_server.uploads_to = proxy.url
        backend = connect(BackendConfig("wandb"), filled_run_dir)
        backend.open(start("u1"), -1)
        backend.put_artifact(artifact)
        backend.close()
        wandb.teardown()
    stored = [hashlib.sha256(body).hexdigest() for body in wandb_server.uploads.values()]
    assert {file.sha256 for file in artifact.files} <= set(stored)
    assert sorted(uploads) == sorted([*(file.name for file in artifact.files), uploads[2]])
    assert [known["state"] for known in wandb_server.artifacts.values()] == ["COMMITTED"]


def test_files_that_have_not_changed_since_they_were_logged_are_not_read_again(filled_run_dir: Path) -> None:
    weights = filled_run_dir / "checkpoints/step-1/a.bin"
    known = KnownDigests({"a.bin": "as logged"}, at_ms=weights.stat().st_mtime_ns // 1_000_000 + 1)
    (unchanged, unknown) = read_artifact("c", "checkpoints/step-1", filled_run_dir, known=known).files
    assert (unchanged.sha256, unknown.sha256) == ("as logged", digest(unknown.path))
    os.utime(weights, ns=(0, known.at_ms * 1_000_000))
    (changed, _) = read_artifact("c", "checkpoints/step-1", filled_run_dir, known=known).files
    assert changed.sha256 == digest(weights)


def test_digests_that_the_caller_knows_are_not_computed_again(filled_run_dir: Path) -> None:
    folder = filled_run_dir / "checkpoints/step-1"
    run = TrackedRun.start(filled_run_dir, uid="u", name="n", experiment="e", backends=[], params={}, tags={})
    run.log_artifact(folder, name="checkpoints/step-1", sha256={"a.bin": "ab" * 32})
    with pytest.raises(TrackerError, match=r"artifact c: a.bin: its sha256 is not 64 hexadecimal digits"):
        run.log_artifact(folder, name="c", sha256={"a.bin": "ab"})
    run.finish("FINISHED")
    (logged,) = [r for r in read_records(RunFiles(filled_run_dir).journal) if r.kind == Kind.ARTIFACT]
    assert logged.data["files"] == {"a.bin": "ab" * 32, "b/c.bin": digest(folder / "b/c.bin")}


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.url) as proxy:
        yield proxy


def at_server(server: MlflowServer, uid: str) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of the run by name, and its tags."""
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("artifacts")
    assert experiment is not None
    (run,) = runs_with_uid(client, experiment.experiment_id, uid)
    root = server.artifacts / run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}, run.data.tags


@pytest.mark.slow
def test_an_artifact_that_was_cut_goes_on_with_the_file_that_was_cut(
    filled_run_dir: Path, mlflow_server: MlflowServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(6):
        (filled_run_dir / "report" / f"{index}.bin").write_bytes(bytes([index]) * MB)
    artifact = read_artifact("report", "report", filled_run_dir)
    uploads: list[str] = []

    def cut_the_fourth(method: str, path: str) -> Fault | None:
        if method != "PUT":
            return None
        uploads.append(path.rpartition("/")[2])
        return Fault("cut_upload", after_bytes=MB // 2) if len(uploads) == 4 else None

    proxy.choose = cut_the_fourth
    backend = connect(BackendConfig("mlflow", options={"tracking_uri": proxy.url}), filled_run_dir)
    backend.open(start("cut"), -1)
    with pytest.raises(Exception, match=r"(?i)connection"):
        backend.put_artifact(artifact)
    files, tags = at_server(mlflow_server, "cut")
    assert tags["mlflow.vlatrack.artifact.report"] == f"{artifact.sha256} 3/8"
    assert sorted(files) == ["report/0.bin", "report/1.bin", "report/2.bin"]
    again = connect(BackendConfig("mlflow", options={"tracking_uri": proxy.url}), filled_run_dir)
    again.open(start("cut"), 0)
    again.put_artifact(artifact)
    assert uploads == [f"{i}.bin" for i in (0, 1, 2, 3, 3, 4, 5)] + ["large.bin", "small.bin"]
    files, tags = at_server(mlflow_server, "cut")
    assert tags["mlflow.vlatrack.artifact.report"] == artifact.sha256
    assert {name: digest(path) for name, path in files.items()} == {
        f"report/{f.name}": f.sha256 for f in artifact.files
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_file_of_2_gib_that_was_cut_in_the_middle_arrives_once_and_whole_in_little_memory(
    tmp_path: Path, run_dir: Path, mlflow_server: MlflowServer, proxy: FaultProxy
) -> None:
    if shutil.disk_usage(tmp_path).free < 8 * GIB:
        pytest.skip("less than 8 GiB of disk are free")
    files = RunFiles(run_dir)
    private_directory(files.delivery)
    large = run_dir / "large.bin"
    large.touch()
    os.truncate(large, 2 * GIB)
    with large.open("r+b") as file:
        for at in (0, GIB, 2 * GIB - 9):
            file.seek(at)
            file.write(b"not zero")
    options = {"tracking_uri": proxy.url, "copy_up_to_mb": 3000}
    files.backends.write_text(json.dumps([{"kind": "mlflow", "options": options}]))
    journal = Journal.open(files.journal, run="huge", writer="trainer")
    journal.append(Kind.START, {"name": "huge", "experiment": "artifacts", "params": {}, "tags": {}})
    journal.append(Kind.ARTIFACT, {"name": "large.bin", "place": "large.bin", "sha256": "", "files": {}})
    journal.append(Kind.FINISH, {"status": "FINISHED", "reason": None, "deliver_until_ms": 0})
    journal.close()
    uploads: list[str] = []

    def cut_the_first(method: str, path: str) -> Fault | None:
        uploads.extend([path] if method == "PUT" else [])
        return Fault("cut_upload", after_bytes=700 * MB) if method == "PUT" and len(uploads) == 1 else None

    proxy.choose = cut_the_first
    command = [
        sys.executable,
        "-m",
        "vlatrack.tracking.delivery.worker",
        str(run_dir),
        "--patience",
        "300",
        "--trust-destination",
    ]
    command.append("--trust-destination")
    # A process starts with the peak of the one that started it, and this one is large: a small one stands in between.
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code, *command], stdout=subprocess.PIPE, text=True, check=True)
    peak_kib = int(done.stdout.splitlines()[-1])  # MLflow has said something before
    assert peak_kib * 1024 < 600 * MB
    stored, _ = at_server(mlflow_server, "huge")
    assert {name: (path.stat().st_size, digest(path)) for name, path in stored.items()} == {
        "large.bin": (2 * GIB, digest(large))
    }
    assert len(uploads) >= 2
    cursor = CursorFile(files.delivery, "mlflow-0").read()
    assert (cursor.seq, cursor.dead_letters, cursor.error) == (2, 0, None)
    stored["large.bin"].unlink()
