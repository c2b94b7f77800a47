"""The rooms of vlatrack and what each may import: docs/architecture.md's annotated tree, enforced.

Imports count wherever they stand, inside functions too; those under `if TYPE_CHECKING:` as well.
"""

import ast
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlatrack"

LIBRARY = {
    "errors",
    "plugins",
    "spec",
    "metrics",
    "tokens",
    "data",
    "models",
    "health",
    "tracking",
    "training",
    "envs",
    "importers",
    "inference",
    "evaluation",
    "serving",
    "reports",
}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "plugins": {"errors"},
    "spec": {"health", "metrics", "errors"},
    "metrics": {"errors"},
    "health": {"metrics", "errors"},
    "tokens": {"errors"},
    "data": {"tokens", "errors"},
    "models": {"tokens", "metrics", "errors"},
    "training": {"models", "data", "metrics", "tokens", "errors"},
    "envs": {"data", "plugins", "errors"},
    "inference": {"models", "data", "tokens", "errors"},
    "evaluation": {"inference", "envs", "models", "data", "tokens", "metrics", "errors"},
    "serving": {"inference", "data", "errors"},
    "tracking": {"health", "metrics", "errors"},
    "reports": {"health", "spec", "metrics", "tracking", "errors"},
    "importers": {"evaluation", "tracking", "reports", "metrics", "errors"},
    "testing": {"tracking", "envs", "data", "models", "tokens", "metrics", "errors"},
    "builders": LIBRARY | {"plugins"},
    "runner": LIBRARY | {"builders"},
    "bench": LIBRARY | {"builders", "runner"},
    "sweep": LIBRARY | {"builders", "runner"},
    "submission": LIBRARY | {"builders", "runner"},
    # A command may reach into the room that it shows: `data record` into envs, `ui` into tracking.
    "cli": {
        "builders",
        "runner",
        "bench",
        "sweep",
        "submission",
        "evaluation",
        "importers",
        "spec",
        "training",
        "data",
        "envs",
        "health",
        "tracking",
        "reports",
        "serving",
        "errors",
    },
    "__main__": {"cli"},
}
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "mlflow",
    "wandb",
    "tensorboard",
    "matplotlib",
    "av",
    "h5py",
    "pyarrow",
    "metaworld",
    "optuna",
    "submitit",
)


@dataclass(frozen=True)
class Import:
    """One import statement of one of our own modules."""

    file: Path
    line: int
    module: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def room_of(file: Path) -> str:
    """The room that a file belongs to: its folder under vlatrack/, or its own name."""
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def room_imported(module: str) -> str:
    """The room that `vlatrack.room.module` lies in; the package itself ("vlatrack") is the room ""."""
    return module.partition(".")[2].partition(".")[0]


@functools.cache
def imports_of(file: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def own_imports(file: Path) -> list[Import]:
    return [
        Import(file, node.lineno, module)
        for node in imports_of(file)
        for module in imported_modules(node)
        if module.partition(".")[0] == "vlatrack"
    ]


def imported_modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full names of the modules that one statement imports (`from vlatrack import data` is vlatrack.data)."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=str(module), names=names, level=0):
            return [f"vlatrack.{alias.name}" for alias in names] if module == "vlatrack" else [module]
        case _:
            return []


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_module_lies_in_a_known_room() -> None:
    assert {room_of(file) for file in modules()} - {"__init__"} <= ALLOWED.keys()


def test_no_import_is_relative() -> None:
    relative = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in modules()
        for node in imports_of(file)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("room", ALLOWED)
def test_room_imports_only_from_the_rooms_it_may(room: str) -> None:
    may = ALLOWED.get(room, set()) | {room, "", "__version__"}
    crossings = [
        statement.place
        for file in modules()
        if room_of(file) == room
        for statement in own_imports(file)
        if room_imported(statement.module) not in may
    ]
    assert not crossings, "\n".join(crossings)


def test_no_room_reaches_itself_through_the_others() -> None:
    def reachable(room: str) -> set[str]:
        below = set(ALLOWED[room])
        return below.union(*(reachable(other) for other in below))

    assert all(room not in reachable(room) for room in ALLOWED)


def test_package_init_files_import_nothing() -> None:
    """That of the package itself names the public API, and imports it when it is used (tests/test_public_api.py)."""
    files = [file for file in PACKAGE.rglob("__init__.py") if file.parent != PACKAGE]
    guilty = [str(file.relative_to(ROOT)) for file in files if imports_of(file)]
    assert guilty == []


@pytest.mark.parametrize("module", ["vlatrack.spec.load", "vlatrack.cli.main", "vlatrack.runner.processes"])
def test_light_module_imports_no_heavy_package(module: str) -> None:
    """A spec is validated, and a help text shown, without torch or a tracker; numpy stays out as well."""
    probe = f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"numpy", *HEAVY}.isdisjoint(loaded.stdout.split())
