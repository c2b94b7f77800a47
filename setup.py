"""What pyproject.toml cannot say: a wheel holds the experiments, which lie beside the package, for `vlatrack new`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NOT_SHIPPED = ("libero_scripted", ".*", "__pycache__")
"""A study with its results, and recordings that are not finished."""


class BuildWithExperiments(build_py):
    """Copies experiments/ into the package; an editable installation finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "vlatrack" / "experiments"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("experiments", target, ignore=shutil.ignore_patterns(*NOT_SHIPPED))


setup(cmdclass={"build_py": BuildWithExperiments})
