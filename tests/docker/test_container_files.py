"""The Dockerfile against the project that it packages; no daemon is needed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continued lines joined, comments left out."""
    code = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = code.replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def copied_from_the_build_context() -> list[str]:
    copies = [arguments.split() for name, arguments in instructions() if name == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def test_everything_that_the_image_copies_exists_and_enters_the_build() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    assert copied_from_the_build_context()
    for source in copied_from_the_build_context():
        assert (ROOT / source).exists(), source
        assert any(f"{source}/".startswith(f"{entry}/") for entry in let_in), f"{source} is held back by .dockerignore"


def test_the_image_installs_what_pyproject_declares() -> None:
    command = re.search(r"python (docker/requirements\.py) ", DOCKERFILE)
    assert command is not None
    extras = dict(arguments.split("=", 1) for name, arguments in instructions() if name == "ARG" and "=" in arguments)
    run = [sys.executable, command[1], *extras["EXTRAS"].strip('"').split()]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"torch>=2.11", "wandb==0.31.0", "psycopg2-binary>=2.9.11"} <= set(printed)
    assert not any(line.startswith(("ruff", "metaworld")) for line in printed)


def test_an_unknown_extra_stops_the_build() -> None:
    run = [sys.executable, "docker/requirements.py", "no-such-extra"]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, check=False).returncode != 0


def test_the_container_does_not_run_as_root() -> None:
    users = [arguments for name, arguments in instructions() if name == "USER"]
    ids = dict(arguments.split("=", 1) for name, arguments in instructions() if name == "ARG" and "ID=" in arguments)
    assert users == ["${UID}:${GID}"]
    assert int(ids["UID"]) > 0


@pytest.mark.parametrize(
    ("extras", "installed"),
    [("wandb", ""), ("wandb scale", "gcc"), ("wandb libero scale", "gcc libosmesa6"), ("metaworld", "libosmesa6")],
)
def test_an_image_with_a_simulator_gets_opengl_beside_what_else_is_asked_for(
    extras: str, installed: str, tmp_path: Path
) -> None:
    (step,) = [arguments for name, arguments in instructions() if name == "RUN" and "libosmesa6" in arguments]
    called = tmp_path / "called"
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    (tmp_path / "rm").write_text("#!/bin/sh\n")
    for program in ("apt-get", "rm"):
        (tmp_path / program).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRAS": extras}
    if "gcc" in installed:
        environment["PACKAGES"] = "gcc"
    subprocess.run(["sh", "-c", step], env=environment, check=True)
    calls = called.read_text().splitlines() if called.exists() else []
    assert set(installed.split()) == {"gcc", "libosmesa6"} & set(" ".join(calls).split())
    assert bool(calls) == bool(installed)


def test_an_image_knows_of_which_commit_it_is_and_a_run_in_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlatrack.runner import manifest

    assert ("ENV", "VLATRACK_COMMIT=${COMMIT}") in instructions()
    (labels,) = [arguments for name, arguments in instructions() if name == "LABEL"]
    assert "org.opencontainers.image.revision=${COMMIT}" in labels.split()
    monkeypatch.setattr(manifest, "_own_git", lambda runs=None: None)  # no checkout, as in the image
    for value, told in (("ab12" * 10, "ab12" * 10), ("", None), ("main; rm -rf /", None)):
        monkeypatch.setenv("VLATRACK_COMMIT", value)
        assert manifest.describe_code([], runs=None)["image_commit"] == told
