"""Dockerfile and compose file against the project they package; no daemon is needed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
SERVER, TRAINER = COMPOSE["services"]["mlflow"], COMPOSE["services"]["trainer"]


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
    extras = dict(arguments.split("=") for name, arguments in instructions() if name == "ARG" and "=" in arguments)[
        "EXTRAS"
    ]
    run = [sys.executable, command[1], *extras.split()]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"torch>=2.11", "wandb==0.31.0"} <= set(printed)
    assert not any(line.startswith(("ruff", "metaworld")) for line in printed)


def test_an_unknown_extra_stops_the_build() -> None:
    run = [sys.executable, "docker/requirements.py", "no-such-extra"]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, check=False).returncode != 0


def test_the_container_does_not_run_as_root() -> None:
    users = [arguments for name, arguments in instructions() if name == "USER"]
    ids = dict(arguments.split("=") for name, arguments in instructions() if name == "ARG" and "ID=" in arguments)
    assert users == ["${UID}:${GID}"]
    assert int(ids["UID"]) > 0
    for service in (SERVER, TRAINER):
        assert service["user"] == "${VLATRACK_UID:-1000}:${VLATRACK_GID:-1000}"


def test_no_key_is_written_into_image_or_compose_file() -> None:
    assert "WANDB_API_KEY" not in DOCKERFILE
    assert "WANDB_API_KEY" in TRAINER["environment"]  # the bare name: its value comes from the shell at run time


def test_trainer_command_is_a_valid_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlatrack.cli.spec import validate

    monkeypatch.chdir(ROOT)
    program, *arguments = TRAINER["command"]
    assert program == "run"
    app = typer.Typer()
    app.command()(validate)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("OK")


def test_trainer_and_server_agree_on_name_and_port() -> None:
    uri = re.search(r"http://[\w:]+", TRAINER["command"][-1])
    assert uri is not None
    host, port = uri[0].removeprefix("http://").split(":")
    options = dict(option.removeprefix("--").split("=", 1) for option in SERVER["command"])
    assert host in COMPOSE["services"]
    assert options["port"] == port
    assert f"{host}:{port}" in options["allowed-hosts"].split(",")
    assert SERVER["ports"][0].endswith(f":{port}")
    assert f":{port}/health" in SERVER["healthcheck"]["test"][-1]
    assert TRAINER["depends_on"] == {host: {"condition": "service_healthy"}}


def test_volumes_are_mounted_on_folders_of_the_user() -> None:
    owned = re.search(r"install --directory --owner vlatrack --group vlatrack (.+)", DOCKERFILE)
    assert owned is not None
    named = [volume.split(":") for service in (SERVER, TRAINER) for volume in service["volumes"] if volume[0] != "."]
    assert {name for name, _ in named} == COMPOSE["volumes"].keys()
    assert {target for _, target in named} <= set(owned[1].split())


def test_every_build_argument_of_the_compose_files_is_one_of_the_image() -> None:
    gpu = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text(encoding="utf-8"))["services"]
    declared = {arguments.partition("=")[0] for name, arguments in instructions() if name == "ARG"}
    arguments = gpu["mlflow"]["build"]["args"]
    assert arguments.keys() | SERVER["build"]["args"].keys() <= declared
    run = [sys.executable, "docker/requirements.py", *arguments["EXTRAS"].split()]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_an_image_knows_of_which_commit_it_is_and_a_run_in_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlatrack.runner import manifest

    assert ("ENV", "VLATRACK_COMMIT=${COMMIT}") in instructions()
    assert ("LABEL", "org.opencontainers.image.revision=${COMMIT}") in instructions()
    monkeypatch.setattr(manifest, "_own_git", lambda runs=None: None)  # no checkout, as in the image
    for value, told in (("ab12" * 10, "ab12" * 10), ("", None), ("main; rm -rf /", None)):
        monkeypatch.setenv("VLATRACK_COMMIT", value)
        assert manifest.describe_code([], runs=None)["image_commit"] == told
