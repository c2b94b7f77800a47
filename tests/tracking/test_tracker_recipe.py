"""The tracker of docs/write-a-tracker.md in an installed package: by its path, by an entry point, shipped."""

import re
import sys
from pathlib import Path

import pytest
from recipes import files_of

from vlatrack.builders.trackers import build_backends
from vlatrack.spec.load import parse_backends
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends import registry
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import BUILT_IN, BuiltIn, check_backend, connect
from vlatrack.tracking.run import TrackedRun

PAGE = "write-a-tracker.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that offers its tracker as the recipe says."""
    folder = tmp_path / "lib"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "tracker.py").write_text(files_of(PAGE)["my_tracker.py"])
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlatrack.backends]\nmine = my_package.tracker:MyTracker\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("my_package", "my_package.tracker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_the_line_of_the_yaml_and_the_entry_point_deliver_a_run(package: Path, run_dir: Path) -> None:
    (line,) = re.findall(r"- (\{kind: custom.*?\})\n", files_of(PAGE)["tracking.yaml"])
    named = [line.replace("my_tracker:", "my_package.tracker:"), "{kind: custom, target: mine}"]
    run = TrackedRun.start(
        run_dir,
        uid="u",
        name="n",
        experiment="e",
        backends=build_backends(parse_backends(f"[{', '.join(named)}]")),
        params={},
        tags={},
    )
    run.log({"train_closs": 0.5}, step=1)
    assert run.finish("FINISHED").complete
    assert (run_dir / "table" / "run.sqlite").exists()
    assert (run_dir / "mine" / "run.sqlite").exists()


def test_one_that_ships_needs_one_line_in_the_registry(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        registry,
        "BUILT_IN",
        {**BUILT_IN, "my_package": BuiltIn("my_package.tracker:MyTracker", "pip install mine", ("folder",))},
    )
    config = BackendConfig("my_package", options={"folder": "shipped"})
    check_backend(config)
    run = ExampleRun(tmp_path)
    connect(config, run.dir).open(run.start_value(), -1)
    assert (run.dir / "shipped" / "run.sqlite").exists()
