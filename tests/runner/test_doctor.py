import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.runner import doctor
from vlatrack.runner.doctor import Check, Verdict, worst


@pytest.fixture(autouse=True)
def no_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for OpenGL takes a second, and has tests of its own."""
    monkeypatch.setattr(doctor, "_opengl", lambda: iter(()))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def looked_at(runs: Path, *, exit_code: int = 0) -> dict[str, dict[str, str]]:
    done = CliRunner().invoke(app, ["doctor", "--json", "--runs", str(runs)], catch_exceptions=False)
    assert done.exit_code == exit_code, done.output
    return {check["subject"]: check for check in map(json.loads, done.output.splitlines())}


def test_a_container_without_a_gpu_is_fit_and_nothing_is_left_in_its_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATRACK_COMMIT", "ab12" * 10)
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)  # an image has no git
    found = looked_at(tmp_path / "runs")
    assert found["image"]["found"].startswith("of commit ab12ab12ab12, ")
    assert "git" not in found
    assert found["processor"]["verdict"] in ("ok", "warning")
    assert found["runs"]["found"].startswith(f"{tmp_path / 'runs'}: ")
    assert {check["verdict"] for check in found.values()} <= {"ok", "note", "warning"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    found = looked_at(Path("/proc/runs"), exit_code=1)["runs"]
    assert (found["verdict"], found["remedy"]) == ("error", "choose another folder with --runs")


def test_a_server_that_is_not_there_is_named_without_its_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:s3cret-word@127.0.0.1:{port}")
    found = looked_at(tmp_path)["MLflow"]
    assert found["verdict"] == "warning"
    assert f"127.0.0.1:{port}: no answer" in found["found"]
    assert "s3cret-word" not in json.dumps(found)
    assert "sync" in found["remedy"]


def test_a_server_that_answers_is_fine_whatever_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
            assert looked_at(tmp_path)["MLflow"]["verdict"] == "ok"
        finally:
            server.shutdown()


def test_a_variable_without_such_a_value_is_an_error_and_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    found = looked_at(tmp_path, exit_code=1)
    assert "WANDB_MODE=nonsense" in found["settings"]["found"]
    assert any(subject.startswith("extra") for subject in found)


def test_a_cpu_build_beside_a_driver_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    (check,) = doctor._gpus()
    assert (check.verdict, check.found) == (Verdict.ERROR, "this torch is a CPU build")


def test_the_gravest_verdict_counts() -> None:
    assert worst([]) is Verdict.OK
    checks = [Check("a", verdict, "") for verdict in (Verdict.NOTE, Verdict.WARNING, Verdict.OK)]
    assert worst(checks) is Verdict.WARNING
