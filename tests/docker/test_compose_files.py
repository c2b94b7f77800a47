"""The Compose files against the image, the command line and one another; no daemon is needed."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from container_commands import check_command

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OURS = ("mlflow", "dashboard", "trainer")


def options(service: str) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in SERVICES[service]["command"] if word[:2] == "--")


def test_no_service_may_more_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["user"] not in ("root", "0"), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    for name in OURS:
        assert SERVICES[name]["user"] == "${VLATRACK_UID:-1000}:${VLATRACK_GID:-1000}"
    assert "ports" not in SERVICES["postgres"]
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"]["internal"]
    assert "networks" not in SERVICES["trainer"]  # the default one, where the database is not


def test_passwords_come_from_files_that_git_ignores_and_stand_nowhere_else() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/docker/secrets/", "/docker/.env"} <= set(ignored)
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == {
        f"./secrets/{name}" for name in COMPOSE["secrets"]
    }
    for name, service in SERVICES.items():
        read = set(re.findall(r"/run/secrets/([\w-]+)", yaml.safe_dump(service)))
        assert read == set(service.get("secrets", [])), name
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|KEY", variable):  # a file, or nothing: then the value comes from the shell
                assert value is None or value.startswith("/run/secrets/"), variable
    assert SERVICES["trainer"]["environment"]["WANDB_API_KEY"] is None
    assert "WANDB_API_KEY" not in DOCKERFILE
    assert not re.search(r"://\w+:[^@/\s]+@", yaml.safe_dump(COMPOSE))


def test_volumes_are_declared_and_belong_to_the_user_of_the_image() -> None:
    owned = re.search(r"install --directory --owner vlatrack --group vlatrack \\\n +(.+)", DOCKERFILE)
    assert owned is not None
    mounts = {name: service.get("volumes", []) for name, service in SERVICES.items()}
    named = [volume.split(":") for volumes in mounts.values() for volume in volumes if isinstance(volume, str)]
    assert {name for name, *_ in named} == COMPOSE["volumes"].keys()
    assert {target for name, target, *_ in named if name != "postgres"} <= set(owned[1].split())
    assert mounts["dashboard"] == ["runs:/workspace/runs:ro"]
    for bind in (volume for volume in mounts["trainer"] if isinstance(volume, dict)):
        assert bind["read_only"]
        assert bind["bind"] == {"create_host_path": False}  # else Docker makes it, as root
        assert bind["target"] in owned[1].split()


def test_images_have_a_version_that_does_not_move_to_another_release() -> None:
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    database = re.fullmatch(r"\$\{POSTGRES_IMAGE:-(.+)\}", SERVICES["postgres"]["image"])
    assert database is not None
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base[1])
    assert re.fullmatch(r"postgres:17\.\d+-bookworm", database[1])
    assert all(SERVICES[name]["image"] == "vlatrack" for name in OURS)
    assert [name for name in OURS if "build" in SERVICES[name]] == ["mlflow"]


def test_every_service_waits_for_the_health_of_those_that_it_needs() -> None:
    for name, needed in (("mlflow", "postgres"), ("dashboard", "mlflow"), ("trainer", "mlflow")):
        assert SERVICES[name]["depends_on"] == {needed: {"condition": "service_healthy"}}
        assert "healthcheck" in SERVICES[needed]


def test_trainer_server_and_database_agree_on_names_and_ports() -> None:
    assert SERVICES["trainer"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert options("mlflow")["port"] == "5000"
    assert {"mlflow:5000", "localhost:*"} <= set(options("mlflow")["allowed-hosts"].split(","))
    assert SERVICES["mlflow"]["ports"][0].endswith(":5000")
    assert ":5000/health" in SERVICES["mlflow"]["healthcheck"]["test"][-1]
    database = SERVICES["postgres"]["environment"]
    store = f"postgresql+psycopg2://{database['POSTGRES_USER']}@postgres/{database['POSTGRES_DB']}"
    assert options("mlflow")["backend-store-uri"] == store
    assert options("mlflow")["artifacts-destination"].startswith("/mlflow/")
    port = options("dashboard")["port"]
    assert SERVICES["dashboard"]["ports"][0].endswith(f":{port}")
    assert f"'127.0.0.1', {port}," in SERVICES["dashboard"]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("service", ["dashboard", "trainer"])
def test_the_commands_are_ones_of_vlatrack(service: str) -> None:
    check_command(SERVICES[service]["command"])


@pytest.mark.parametrize(("service", "program"), [("mlflow", "mlflow"), ("dashboard", "vlatrack")])
def test_a_password_with_any_letters_reaches_the_program_by_its_environment(
    service: str, program: str, tmp_path: Path
) -> None:
    secret = 'it\'s "a" $HOME `id` *'
    (name,) = SERVICES[service]["secrets"]
    (tmp_path / name).write_text(secret)
    (tmp_path / program).write_text(f'#!{sys.executable}\nimport os, sys\nprint(os.environ["SECRET"], sys.argv[1:])\n')
    (tmp_path / program).chmod(0o755)
    words = [word.replace("$$", "$").replace("/run/secrets", str(tmp_path)) for word in SERVICES[service]["entrypoint"]]
    words[2] = re.sub(r"PGPASSWORD|VLATRACK_TOKEN", "SECRET", words[2])
    command = [*words, *SERVICES[service]["command"]]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    before = ["server"] if service == "mlflow" else []
    assert told == f"{secret} {[*before, *SERVICES[service]['command']]}\n"


def test_the_gpu_file_changes_services_that_exist_by_arguments_that_the_image_has() -> None:
    assert GPU["services"].keys() <= SERVICES.keys()
    declared = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    arguments = GPU["services"]["mlflow"]["build"]["args"]
    assert arguments.keys() | SERVICES["mlflow"]["build"]["args"].keys() <= declared
    run = [sys.executable, "docker/requirements.py", *arguments["EXTRAS"].replace("${EXTRAS:-}", "metaworld").split()]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, check=False).returncode == 0
    (device,) = GPU["services"]["trainer"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_preparing_a_clone_twice_makes_folders_and_passwords_once_and_keeps_own_settings(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "prepare.sh", tmp_path / "docker")
    settings, password = tmp_path / "docker" / ".env", tmp_path / "docker" / "secrets" / "postgres-password"
    for name in ("init", "add .", "-c user.name=me -c user.email=me@host commit -m all"):
        subprocess.run(["git", *name.split()], cwd=tmp_path, capture_output=True, check=True)
    settings.write_text("TORCH=torch==2.13.0+cpu\nVLATRACK_UID=7\n")
    prepare = ["sh", str(tmp_path / "docker" / "prepare.sh")]
    told = subprocess.run(prepare, capture_output=True, text=True, check=True).stderr
    assert told == "changes that are not committed (or no git): the image will name no commit\n"
    first = password.read_text()
    (tmp_path / ".gitignore").write_text("/docker/.env\n/docker/secrets/\n")
    assert subprocess.run(prepare, capture_output=True, text=True, check=True).stderr == ""
    assert re.fullmatch("[0-9a-f]{48}", first)
    assert password.read_text() == first
    assert stat.S_IMODE(password.parent.stat().st_mode) == 0o700
    lines = settings.read_text().splitlines()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert lines[0] == "TORCH=torch==2.13.0+cpu"
    assert sorted(line.partition("=")[0] for line in lines[1:]) == ["COMMIT", "VLATRACK_GID", "VLATRACK_UID"]
    assert f"COMMIT={commit.stdout.strip()}" in lines
    assert "VLATRACK_UID=0" not in lines
    assert (tmp_path / "data").is_dir()
    assert (tmp_path / "checkpoints").is_dir()
