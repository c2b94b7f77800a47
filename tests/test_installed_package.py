"""What a person has who installs vlatrack from an index, without a checkout: sdist, wheel, and the program in them."""

import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
import venv
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import yaml
from launching import running

import vlatrack
from vlatrack.cli.new import SHIPPED

ROOT = Path(__file__).parents[1]
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def tracked(folder: str = ".") -> set[str]:
    """What git tracks, or would add."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in names if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the files that git knows, as a release is."""
    clean, built = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (clean / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clean / name)
    subprocess.run([sys.executable, "-c", BUILD_SDIST, built], cwd=clean, check=True, capture_output=True)
    (archive,) = built.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of the sdist, with no file of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, sdist]
    subprocess.run([sys.executable, "-m", "pip", "-q", *words], check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and the packages of this one behind it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    words = ["--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", "-q", *words], check=True, capture_output=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


class User:
    """Somebody in an empty folder, whose environment knows nothing of the checkout."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self.folder = programs, folder
        self.environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def command(self, *words: str) -> list[str]:
        return [str(self._programs / "vlatrack"), *words]

    def run(self, *words: str, inside: str = ".") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*words),
            cwd=self.folder / inside,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )


@pytest.fixture
def user(installed: Path, tmp_path: Path) -> User:
    return User(installed, tmp_path)


@pytest.mark.slow
def test_the_sdist_holds_what_git_tracks_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    made = {name for name in held if name.startswith("vlatrack.egg-info/") or name in ("PKG-INFO", "setup.cfg")}
    assert held - made == tracked()


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_the_experiments(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    experiments = {name for name in tracked("experiments") if not name.startswith("experiments/libero_scripted/")}
    assert held == tracked("vlatrack") | {f"vlatrack/{name}" for name in experiments}
    assert {"vlatrack/py.typed", "vlatrack/experiments/quickstart.yaml"} < held
    headers = HeaderParser().parsestr(metadata)
    assert headers["Version"] == vlatrack.__version__
    assert headers["Description-Content-Type"] == "text/markdown"
    assert headers["License-Expression"] == "Apache-2.0"
    assert headers["License-File"] == "LICENSE"


@pytest.mark.slow
def test_an_installed_vlatrack_trains_and_shows_its_quickstart_without_a_checkout(user: User) -> None:
    assert user.run("--version").stdout == f"vlatrack {vlatrack.__version__}\n"
    made = user.run("new", "my vla")
    assert made.stdout.splitlines()[-1] == "next: cd 'my vla' && vlatrack run experiments/quickstart.yaml"
    for file in ("quickstart.yaml", "evaluation/metaworld.yaml", "sweeps/quickstart.yaml"):
        validated = user.run("validate", f"experiments/{file}", inside="my vla")
        assert validated.stdout.endswith("OK\n"), validated.stderr
        assert "not there yet" not in validated.stdout
    short = ["train.max_steps=2", "tokenizer.image.encoder=squares", "evaluate.open_loop=null", "tracking.backends=[]"]
    tasks = "[close the door, press the button of the coffee machine]"  # in each alone, the gripper never moves
    source = f"kind: lerobot, path: experiments/data/metaworld-mini, tasks: {tasks}"
    few = [f"data.train={{{source}}}", f"data.val_ind={{{source}}}", "data.val_ood=null"]
    done = user.run("run", "experiments/quickstart.yaml", *short, *few, inside="my vla")
    assert done.returncode == 0, done.stderr
    words = user.command("ui", "--port", "0")
    serving = running(words, cwd=user.folder / "my vla", env=user.environment, stdout=subprocess.PIPE)
    with serving as server:
        assert server.stdout is not None
        (address,) = re.findall(r"http://[\d.:]+/", server.stdout.readline())
        for file in sorted((ROOT / "vlatrack" / "reports" / "dashboard" / "static").iterdir()):
            if file.suffix in (".js", ".css"):
                with urllib.request.urlopen(f"{address}static/{file.name}", timeout=30) as answer:
                    assert answer.read() == file.read_bytes()
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b"<title>" in answer.read()


def test_version_keywords_and_licence_are_the_same_wherever_they_stand() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "vlatrack.__version__"}
    assert citation["version"] == vlatrack.__version__
    assert citation["license"] == project["project"]["license"]
    assert citation["title"].lower() == f"vlatrack: {project['project']['description']}".lower()
    assert set(citation["keywords"]) <= set(project["project"]["keywords"])
    stated = re.compile(rf"(?:vlatrack\W{{1,2}}v?|image\.version\W){re.escape(vlatrack.__version__)}")
    for file in (file for file in (ROOT / "docker").rglob("*") if file.is_file()):
        assert not stated.search(file.read_text()), f"{file.name}: the version comes from the package"


def test_every_experiment_that_ships_is_offered_with_files_that_there_are() -> None:
    assert set(SHIPPED) == {file.stem for file in (ROOT / "experiments").glob("*.yaml")}
    for shipped in SHIPPED.values():
        assert all((ROOT / "experiments" / name).exists() for name in shipped.files)
