"""What `import vlatrack` offers, and what it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlatrack
from vlatrack import errors

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_documented() -> None:
    for name in set(vlatrack.__all__) - {"__version__"}:
        assert getattr(vlatrack, name).__doc__, name


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    tree = ast.parse((ROOT / "vlatrack" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen == set(vlatrack.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        vlatrack.trian  # noqa: B018


def test_importing_vlatrack_loads_nothing_of_weight() -> None:
    probe = "import sys, vlatrack; print(*sorted(m for m in sys.modules if '.' not in m), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "pydantic", "yaml", "rich", "mlflow"}.isdisjoint(done.stdout.split())


def test_every_exception_of_the_project_derives_from_its_base() -> None:
    """Those named here never leave the room that catches them."""
    internal = {"RollbackError", "EvaluationStopped", "StopTraining", "Terminated"}
    guilty = []
    for file in (ROOT / "vlatrack").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and node.name not in internal:
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if bases & {"Exception", "BaseException", "RuntimeError", "ValueError", "OSError"} and not (
                    file.name == "errors.py" and node.name == "VlatrackError"
                ):
                    guilty.append(f"{file.relative_to(ROOT)}: {node.name}")
    assert guilty == []
    assert issubclass(errors.NonFiniteError, errors.VlatrackError)
