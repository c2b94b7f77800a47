"""The packages of a recorded run: which differ here, and an environment that has them."""

import re
import site
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from vlatrack.errors import RunError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_OWN = "vlatrack"
"""Comes from its repository, if that is recorded."""


def package_differences(recorded: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
    """Recorded and present version of each recorded package that is not the same here; None: not installed."""
    present = {_canonical(name): version for name, version in here.items()}
    return {
        name: (version, present.get(_canonical(name)))
        for name, version in recorded.items()
        if present.get(_canonical(name)) != version and _canonical(name) != _OWN
    }


def make_environment(folder: Path, wanted: Mapping[str, str]) -> tuple[Path, Path]:
    """A virtual environment on top of the present one, in which these packages have these versions: its Python, and the
    folder of the packages, for which PYTHONPATH must not stand first.

    What pip is configured with, such as another index, holds. Nothing else than the wanted packages is installed.

    Raises:
        RunError: a version cannot be installed, or the name or version of a package is none.
    """
    for name, version in wanted.items():
        if _NAME.fullmatch(name) is None or _VERSION.fullmatch(version) is None:
            raise RunError(f"manifest.json: {name!r} {version!r} is no package; --here uses those that are installed")
    try:
        venv.create(folder, symlinks=True, with_pip=False)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RunError(f"{folder}: no environment can be made ({error}); --here uses the present packages") from error
    python = folder / "bin" / "python"
    below = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (below / "present.pth").write_text("".join(f"{place}\n" for place in _present_places()), encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--ignore-installed", *(f"{name}=={version}" for name, version in wanted.items())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        raise RunError(f"the recorded packages cannot be installed ({said[-1].strip()}); --here uses the present ones")
    return python, below


def _present_places() -> list[str]:
    """The folders in which this Python finds installed packages."""
    known = {*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return [place for place in sys.path if place in known]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
