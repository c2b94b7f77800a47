"""What a run folder that somebody else made can make of a `vlatrack sync`: no code of it runs, nobody gets a login."""

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from happens import happens
from program import Program
from typer.testing import CliRunner, Result

from vlatrack.cli.main import app
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import backends_text
from vlatrack.tracking.delivery.audit import audit_run
from vlatrack.tracking.journal.records import Kind, read_records
from vlatrack.tracking.run import TrackedRun
from vlatrack.tracking.run_files import RunFiles
from vlatrack.tracking.trust import NOTHING, OWN_RUN, Trust, remember, untrusted

MARKER = "ran.txt"
TRACKER = f"""
from pathlib import Path
Path(__file__).with_name({MARKER!r}).write_text("it ran")
from vlatrack.testing.csv_backend import CsvBackend
class Theirs(CsvBackend): ...
"""
THEIRS = BackendConfig("custom", target="their_tracker:Theirs")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PYTHONPATH with a module that leaves a mark when it is imported."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "their_tracker.py").write_text(TRACKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(folder)
    return folder


def foreign_run(folder: Path, *backends: BackendConfig) -> Path:
    """A run that is over and that no tracker has, as somebody else's folder holds it."""
    run = ExampleRun(folder)
    run.log(3)
    run.finish("FINISHED")
    RunFiles(run.dir).backends.write_text(backends_text(backends))
    return run.dir


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"}, catch_exceptions=False)


@happens(
    "place",
    "the run folder of somebody else names a custom backend",
    "`sync`, `reap` and the audit do not import it: one line says so, the other trackers get the run",
)
def test_a_class_that_only_a_run_folder_names_is_not_imported(tmp_path: Path, package: Path) -> None:
    run = foreign_run(tmp_path, THEIRS, BackendConfig("tensorboard"))
    done = call("sync", run, "--audit")
    assert done.exit_code == 1
    line = "custom-0: 5 of 5 records not delivered, kept for `vlatrack sync`; its class their_tracker:Theirs is not"
    assert (
        f"{line} loaded, since the run folder alone names it; `vlatrack sync --trust-backends` loads it" in done.output
    )
    assert "tensorboard-1: complete, 5 records" in done.output
    assert not (package / MARKER).exists()

    done = call("sync", run, "--audit", "--trust-backends")
    assert (done.exit_code, (package / MARKER).exists()) == (0, True), done.output


def test_an_installed_entry_point_is_loaded_without_being_asked_for(tmp_path: Path, package: Path) -> None:
    info = package / "their_tracker-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tracker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlatrack.backends]\ntheirs = their_tracker:Theirs\n")
    done = call("sync", foreign_run(tmp_path, BackendConfig("custom", target="theirs")))
    assert done.exit_code == 0, done.output
    assert (package / MARKER).exists()


@happens(
    "place",
    "`mlflow.py`, `wandb.py` or a folder `vlatrack` lies where `vlatrack sync` or a training is started",
    "the delivery process does not import it",
)
def test_the_delivery_process_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "x").mkdir(parents=True)
    (here / "vlatrack").mkdir()
    for name in ("tensorboard.py", "mlflow.py", "wandb.py", "json.py", "runpy.py", "vlatrack/__init__.py"):
        (here / name).write_text(f"open({str(here / MARKER)!r}, 'w').close()\nraise SystemExit('not this one')\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "x/.."]))
    done = call("sync", foreign_run(tmp_path, BackendConfig("tensorboard")))
    assert done.exit_code == 0, done.output
    assert not (here / MARKER).exists()


class Recorder(ThreadingHTTPServer):
    """A server that keeps who came, with which login, and answers that it has no time."""

    daemon_threads = True

    def __init__(self) -> None:
        self.logins: list[str | None] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                recorder.logins.append(self.headers.get("Authorization"))
                self.send_error(503)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@happens(
    "place",
    "the run folder of somebody else names a tracking server",
    "nothing is sent to it: one line says so, and that `--trust-destination` would",
)
def test_a_server_that_only_a_run_folder_names_hears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-token-of-this-user")
    run = foreign_run(tmp_path, BackendConfig("mlflow", options={"tracking_uri": recorder.url}))
    done = call("sync", run, "--audit")
    assert done.exit_code == 1
    assert f"nothing is sent to {recorder.url}, since the run folder alone names it" in done.output
    assert recorder.logins == []
    (audit,) = audit_run(run, ["mlflow-0"])
    assert audit.differences[0].startswith("not asked: nothing is sent to")
    assert recorder.logins == []


@happens(
    "place",
    "`vlatrack evaluate` of the run folder of somebody else, which names a tracking server",
    "the numbers stand in its journal; nothing is sent to that server, and one line says so",
)
@pytest.mark.slow
def test_an_evaluation_sends_no_login_to_a_server_that_only_the_run_folder_names(
    program: Program, finished_run: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-token-of-this-user")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run = program.folder / "runs" / "toy" / finished_run.name
    shutil.copytree(finished_run, run)
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    spec["tracking"]["backends"] = [{"kind": "mlflow", "tracking_uri": recorder.url}]
    (run / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = program.run("evaluate", run, "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    assert f"nothing is sent to {recorder.url}, since the run folder alone names it" in done.stdout
    assert recorder.logins == []
    logged = [record.data for record in read_records(RunFiles(run).journal) if record.kind == Kind.METRICS][-1]
    assert "evaluate/val_ind_closs" in logged
    assert not (tmp_path / "config" / "vlatrack").exists()  # nor is it the user's own from now on


@pytest.mark.slow
def test_a_server_that_the_user_trusts_gets_the_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-token-of-this-user")
    run = foreign_run(tmp_path, BackendConfig("mlflow", options={"tracking_uri": recorder.url}))
    done = call("sync", run, "--trust-destination", "--patience", "8")
    assert "503" in done.output
    assert set(recorder.logins) == {"Bearer the-token-of-this-user"}


def test_a_run_of_this_users_own_makes_its_server_known_to_a_later_sync(
    run_dir: Path, tmp_path: Path, recorder: Recorder
) -> None:
    server = BackendConfig("mlflow", options={"tracking_uri": recorder.url})
    assert untrusted(server, Path("runs"), trust=NOTHING) is not None
    run = TrackedRun.start(run_dir, uid="u", name="n", experiment="e", backends=[server], params={}, tags={})
    run.finish("FINISHED", timeout_s=0)
    assert untrusted(server, Path("runs"), trust=NOTHING) is None
    note = tmp_path / "config" / "vlatrack" / "trusted-destinations"
    assert (note.stat().st_mode & 0o777, note.read_text()) == (0o600, f"{recorder.url}\n")
    remember([server])
    assert note.read_text() == f"{recorder.url}\n"


@pytest.mark.parametrize(
    ("own", "foreign", "is_own"),
    [
        ("https://mlflow.lab", "https://mlflow.lab:443/path", True),
        ("https://MLflow.lab:443/a", "https://mlflow.lab", True),
        ("http://[::1]:5000", "http://[::1]:5000/", True),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db", True),
        ("sqlite:////data/mlflow.db", "sqlite:////srv/me/other.db", False),
        ("https://mlflow.lab", "http://mlflow.lab", False),  # the login would go over the wire in the open
        ("https://mlflow.lab", "https://mlflow.lab:5000", False),
        ("https://mlflow.lab", "https://mlflow.lab.evil", False),
        ("https://mlflow.lab", "https://mlflow.lab@evil", False),
        ("https://mlflow.lab", "https://evil\\@mlflow.lab", False),
        ("https://mlflow.lab", "https://evil/#@mlflow.lab", False),
        ("https://mlflow.lab", "https://evil?://mlflow.lab", False),
        ("https://mlflow.lab", "databricks://mlflow.lab", False),
        ("https://mlflow.lab", "evil\nhttps://mlflow.lab:443", False),
        ("", "databricks", False),
    ],
)
@pytest.mark.parametrize("by", ["environment", "list"])
def test_a_server_is_the_users_own_by_scheme_host_and_port(
    monkeypatch: pytest.MonkeyPatch, own: str, foreign: str, is_own: bool, by: str
) -> None:
    if by == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", own)
    else:
        remember([BackendConfig("mlflow", options={"tracking_uri": own})])
    told = untrusted(BackendConfig("mlflow", options={"tracking_uri": foreign}), Path("runs"), trust=NOTHING)
    assert (told is None) == is_own


def test_a_folder_of_the_users_settings_that_cannot_be_written_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    server = BackendConfig("mlflow", options={"tracking_uri": "https://mlflow.lab"})
    remember([server])
    assert untrusted(server, Path("runs"), trust=NOTHING) is not None
    assert untrusted(server, Path("runs"), trust=Trust(destination=True)) is None


def test_settings_of_wandb_in_the_current_folder_do_not_get_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    wandb = BackendConfig("wandb")
    assert untrusted(wandb, Path("runs"), trust=NOTHING) is None
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://evil.example\n")
    told = untrusted(wandb, Path("runs"), trust=NOTHING)
    assert told is not None
    assert f"{tmp_path / 'wandb' / 'settings'} may name another server" in told
    assert untrusted(wandb, Path("runs"), trust=OWN_RUN) is None
    assert untrusted(BackendConfig("wandb", options={"mode": "offline"}), Path("runs"), trust=NOTHING) is None


def test_what_needs_no_login_and_no_class_is_always_delivered() -> None:
    for config in (BackendConfig("mlflow"), BackendConfig("tensorboard"), BackendConfig("wandb")):
        assert untrusted(config, Path("runs"), trust=NOTHING) is None
