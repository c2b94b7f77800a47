"""Print what vlatrack depends on, one requirement a line: python docker/requirements.py [EXTRA ...].

The image installs these before it copies the source, so that a change of the source rebuilds one small layer.
"""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies of the project and of the named extras; an unknown extra is a KeyError."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    chosen = list(project["dependencies"])
    for extra in extras:
        chosen += project["optional-dependencies"][extra]
    return chosen


if __name__ == "__main__":
    print(*requirements(Path(__file__).parents[1] / "pyproject.toml", sys.argv[1:]), sep="\n")
