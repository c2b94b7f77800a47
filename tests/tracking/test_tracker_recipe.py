"""CONTRIBUTING's recipe "Adding a tracker", carried out on a tracker that keeps runs in a SQLite file of its own."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vlatrack.builders.trackers import build_backends
from vlatrack.spec.load import parse_backends
from vlatrack.testing.example_run import ExampleRun
from vlatrack.tracking.backends import registry
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import BUILT_IN, BuiltIn, check_backend, connect
from vlatrack.tracking.run import TrackedRun

RECIPE = (
    (Path(__file__).parents[2] / "CONTRIBUTING.md")
    .read_text()
    .partition("## Adding a tracker\n")[2]
    .partition("\n## ")[0]
)
TRACKER = '''
import sqlite3

from vlatrack.tracking.backends.base import Audit, Position, metric_name

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (id INTEGER PRIMARY KEY CHECK (id = 0), name TEXT, status TEXT, ended_ms INTEGER);
CREATE TABLE IF NOT EXISTS rows (seq INTEGER, name TEXT, step INTEGER, t_ms INTEGER, value TEXT,
    PRIMARY KEY (seq, name));
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, sha256 TEXT);
"""


class MyTracker:
    def __init__(self, run_dir, *, naming, folder="mine"):
        self.path = run_dir / folder / "run.sqlite"
        self.naming = naming
        self.url = str(self.path)

    def open(self, start, acknowledged):
        self.path.parent.mkdir(exist_ok=True)
        self._do(SCHEMA)
        self._do("INSERT INTO run VALUES (0, ?, NULL, NULL) ON CONFLICT DO NOTHING", (start.name,))
        return Position(acknowledged + 1, acknowledged + 1)

    def describe(self, start):
        self._do("UPDATE run SET status = 'RUNNING' WHERE ended_ms IS NULL OR ended_ms <= ?", (start.t_ms,))
        return []

    def deliver(self, records):
        for r in records:
            for name, value in r.data.items():
                row = (r.seq, metric_name(name, self.naming), r.step or 0, r.t_ms, repr(float(value)))
                self._do("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", row)
        return []

    def put_artifact(self, artifact):
        self._do("INSERT OR REPLACE INTO files VALUES (?, ?)", (artifact.name, artifact.sha256))

    def alert(self, title, text, record):
        pass

    def finish(self, finish):
        self._do("UPDATE run SET status = ?, ended_ms = ?", (finish.status, finish.t_ms))

    def audit(self, start):
        if not self.path.exists():
            return Audit()
        points = set(self._do("SELECT name, t_ms, step, value FROM rows"))
        ((last,),) = self._do("SELECT MAX(seq) FROM rows")
        return Audit(status_of_my_tracker(self.path.parents[1]), len({p[0] for p in points}), len(points), last)

    def close(self):
        pass

    def _do(self, sql, values=()):
        return do(self.path, sql, values)


def do(path, sql, values=()):
    database = sqlite3.connect(path)
    try:
        with database:
            return database.executescript(sql) if sql == SCHEMA else database.execute(sql, values).fetchall()
    finally:
        database.close()


def read_my_tracker(run_dir):
    rows = do(run_dir / "mine" / "run.sqlite", "SELECT name, step, t_ms, value FROM rows")
    return [(name, step, t_ms, float(value)) for name, step, t_ms, value in rows]


def status_of_my_tracker(run_dir):
    return do(run_dir / "mine" / "run.sqlite", "SELECT status FROM run")[0][0]
'''


def block(language: str) -> str:
    (code,) = re.findall(rf"```{language}\n(.*?)```", RECIPE, re.DOTALL)
    return code


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that offers its tracker as the recipe says."""
    folder = tmp_path / "lib"
    (folder / "my_package").mkdir(parents=True)
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "tracker.py").write_text(TRACKER)
    info = folder / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    offered = tomllib.loads(block("toml"))["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{n} = {t}\n" for n, t in entries.items()) for group, entries in offered.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(folder)
    for name in ("my_package", "my_package.tracker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_the_line_of_the_yaml_and_the_entry_point_deliver_a_run(package: Path, run_dir: Path) -> None:
    (line,) = re.findall(r"`(\{kind: custom.*?\})`", RECIPE)
    named = [line, "{kind: custom, target: mine}"]
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


@pytest.mark.slow
def test_the_contract_runs_on_the_tracker_as_the_recipe_writes_it(package: Path, tmp_path: Path) -> None:
    imports = "from my_package.tracker import MyTracker, read_my_tracker, status_of_my_tracker\n"
    (tmp_path / "test_my_tracker.py").write_text(imports + block("python"))
    pytest_words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "test_my_tracker.py"]
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); import pytest; sys.exit(pytest.main({pytest_words[2:]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 10


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
