"""The commands and the Python of the documentation, carried out page by page."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import PAGES, blocks
from launching import running
from walkthrough import SUPPORT, Checkout, Walk, files_of, free_port, script_of, write_experiments, write_programs

REASONS = {
    "installs packages",
    "changes the shell",
    "takes minutes",
    "needs a GPU",
    "needs a cluster",
    "needs several machines",
    "needs several users",
    "needs a Docker daemon",
    "needs a database server",
    "needs a simulator",  # carried out where Meta-World is installed
    "needs a robot",
    "needs an account",
    "needs the files of this page",  # which another test writes
}
"""Why a block may be parsed only."""

BEFORE_PYTHON = """
import numpy as np

image = np.zeros((128, 128, 3), np.uint8)
state = np.zeros(4)
"""
"""What the reader of a page has: an observation, in the shapes of the quickstart's data."""

WITH_PYTHON = {"acting.md", "serve.md"}
WITH_COMMANDS = [page for page in PAGES if "echo" in script_of(page, Checkout(Path(), "A", "B"), 0)]


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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_they_are_there_for(page: Path, walk: Walk, checkout: Checkout) -> None:
    port = free_port()
    for name, text in files_of(page).items():
        (walk.folder / name).write_text(text)
    walk.run("bash", "-c", script_of(page, checkout, port))
    if page.name in WITH_PYTHON:
        codes = [block.code for block in blocks(page, "python") if block.not_run is None]
        (walk.folder / "page.py").write_text(BEFORE_PYTHON + "\n".join(codes).replace("8000", str(port)))
        walk.run("python", "page.py")


def test_what_is_only_parsed_has_one_of_the_known_reasons() -> None:
    unknown = {
        str(block): block.not_run
        for page in PAGES
        for language in ("sh", "python", "yaml")
        for block in blocks(page, language)
        if block.not_run is not None and block.not_run not in REASONS
    }
    assert unknown == {}


@pytest.mark.slow
def test_a_page_with_a_command_that_fails_is_found(walk: Walk, checkout: Checkout, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nvlatrack status\nvlatrack health no-such-run\nvlatrack status\n```\n")
    with pytest.raises(AssertionError, match="no-such-run"):
        walk.run("bash", "-c", script_of(page, checkout, 0))
