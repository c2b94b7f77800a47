"""A checkout with finished runs, made once, and a copy of it for each page."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import running
from walkthrough import SUPPORT, Checkout, Walk, write_episodes, write_experiments, write_programs


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    address = tmp_path_factory.mktemp("warm") / "socket"
    environment = Walk.environment_of(address.parent)
    with running([sys.executable, SUPPORT / "warm_program.py", address], env=environment) as process:
        give_up = time.monotonic() + 120
        while not address.is_socket():
            assert process.poll() is None, "it has ended"
            assert time.monotonic() < give_up, "it does not start"
            time.sleep(0.05)
        yield address


@pytest.fixture(scope="session")
def checkout(warm: Path, tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Checkout:
    """Trained once: every page gets a copy of its own."""
    folder = tmp_path_factory.mktemp("checkout")
    write_experiments(folder)
    write_programs(folder)
    write_episodes(folder)
    (folder / "runs").mkdir()
    shutil.copy(empty_store, folder / "runs" / "mlflow.db")
    walk = Walk(folder, warm)
    trainings = ("optim.lr=1e-3 train.epochs=2", "optim.lr=2e-3 train.epochs=4")
    for changes in trainings:
        walk.run("sh", "-c", f"vlatrack run experiments/quickstart.yaml tracking.backends=[mlflow] {changes}")
    walk.close()
    shutil.rmtree(folder / ".walk")
    run_b, run_a = sorted((folder / "runs" / "metaworld-quickstart").iterdir())
    logs = folder / "output" / "libero_goal"  # as RynnVLA-002 writes them, which is the format of ours
    logs.mkdir(parents=True)
    for log in run_b.glob("log_*.txt"):
        shutil.copy(log, logs)
    return Checkout(folder, str(run_a.relative_to(folder)), str(run_b.relative_to(folder)))


@pytest.fixture
def walk(checkout: Checkout, warm: Path, tmp_path: Path) -> Iterator[Walk]:
    folder = tmp_path / "checkout"
    shutil.copytree(checkout.folder, folder)
    walk = Walk(folder, warm)
    yield walk
    walk.close()
