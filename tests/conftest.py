"""Settings and fixtures of every test."""

import faulthandler
import gc
import json
import os

# Before torch is imported: threads that wait by spinning starve the processes that tests start.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:  # with a thread for every core each, they would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from mlflow_server import MlflowServer
from program import TOY, Program
from wandb_double import WANDB_KEY, WandbDouble

# Shells ignore Ctrl-C for what they run in the background: a program that a test starts there could not be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HANGS_AFTER_S = 960  # longer than any test may take
HANGS_FOLDER = "VLATRACK_TESTS_HANGS"
THREADS = pytest.StashKey[TextIO]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        threads = os.open(Path(os.environ[HANGS_FOLDER], str(os.getpid())), os.O_WRONLY | os.O_CREAT)
    else:
        os.environ[HANGS_FOLDER] = tempfile.mkdtemp(prefix="vlatrack-tests-")
        threads = os.dup(2)  # while a test runs, 2 is where its output is captured
    config.stash[THREADS] = os.fdopen(threads, "w")


def pytest_collection_finish() -> None:
    """What all modules have imported lives to the end: the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test whose end hangs as well is not ended by its timeout: its process ends, and says where each thread was."""
    _end_if_it_hangs(item.config)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    if isinstance(node, pytest.Item):
        _end_if_it_hangs(node.config)  # pytest's own hook has called that off, but the end of the test may hang


def _end_if_it_hangs(config: pytest.Config) -> None:
    faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True, file=config.stash[THREADS])


def pytest_unconfigure(config: pytest.Config) -> None:
    """What workers have said comes last, so that no other output hides it."""
    config.stash[THREADS].close()
    if hasattr(config, "workerinput"):
        return
    machinery = ("/_pytest/", "/pluggy/", "/xdist/", "/execnet/", "<string>")
    for said in Path(os.environ[HANGS_FOLDER]).iterdir():
        for line in said.read_text().splitlines():
            if not any(part in line for part in machinery):
                print(line)
    shutil.rmtree(os.environ[HANGS_FOLDER])


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No tracker of the person who runs the tests is reached, and none of their files is read."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; its creation takes seconds, so the tests copy it."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's models use what SQLAlchemy 2.1 deprecates
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[MlflowServer]:
    """A real server for all tests: its start takes seconds. Each test has run uids, or experiments, of its own."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = MlflowServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where a run may be: `<runs>/<experiment>/<run-id>`, not created yet."""
    return tmp_path / "runs" / "exp" / "run-1"


@pytest.fixture
def stored_run_dir(run_dir: Path, empty_store: Path) -> Path:
    """A run directory whose runs folder holds an MLflow database."""
    run_dir.mkdir(parents=True)
    shutil.copy(empty_store, run_dir.parent.parent / "mlflow.db")
    return run_dir


@pytest.fixture
def wandb_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbDouble]:
    """The double of the W&B server, and a key for it in the environment."""
    with WandbDouble() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # seconds; 15 by default
        yield server
        if (wandb := sys.modules.get("wandb")) is not None:
            wandb.teardown()  # what this process asked of the server it would ask of the next test's as well


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until another process has done something that shows only on the disk or at a server."""

    def wait(happened: Callable[[], bool], timeout_s: float = 60) -> None:
        give_up = time.monotonic() + timeout_s
        while not happened():
            assert time.monotonic() < give_up, "it did not happen"
            time.sleep(0.05)

    return wait


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    program.close()


@pytest.fixture(scope="session")
def first_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy run that went from start to end, of a user whose files are for everybody."""
    program = Program(tmp_path_factory.mktemp("finished"))
    usual = os.umask(0)
    try:
        done = program.run("run", TOY, "tracking.figures=true")
    finally:
        os.umask(usual)
        program.close()
    assert done.returncode == 0, done.stderr
    return program.only_run()


@pytest.fixture(scope="module")
def finished_run(first_finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its runs folder, as a copy for the tests of one file: a training takes seconds."""
    runs = shutil.copytree(first_finished_run.parents[1], tmp_path_factory.mktemp("finished") / "runs")
    return runs / first_finished_run.parent.name / first_finished_run.name


@pytest.fixture
def journal_of() -> Callable[[Path], list[dict]]:
    return lambda run: [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
