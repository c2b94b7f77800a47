"""The commands and the Python of the documentation, carried out page by page."""

from pathlib import Path

import pytest
from documents import PAGES, blocks
from walkthrough import Checkout, Walk, files_of, free_port, script_of

REASONS = {
    "installs packages",
    "changes the shell",
    "takes minutes",
    "starts a training in the background",
    "needs the commit of a release",
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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_they_are_there_for(page: Path, walk: Walk, checkout: Checkout) -> None:
    port = free_port()
    for name, text in files_of(page).items():
        (walk.folder / name).write_text(text)
    said = walk.run("bash", "-c", script_of(page, checkout, port))
    errors = [line for block in blocks(page, "text") for line in block.code.splitlines() if line.startswith("error:")]
    assert [error for error in errors if error not in said] == [], said
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
