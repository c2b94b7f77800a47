"""Tests say in one row of a table what happens when something goes wrong: `docs/what-happens-when.md` is made of them.

`python tests/support/happens.py` writes the document anew.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "what-happens-when.md"
AREAS = ("item", "place", "server", "process", "disk")
HEAD = """# What happens when

What vlatrack does when tracking goes wrong. Each row is a claim, which the test named in it proves. The table is made
of the tests by `python tests/support/happens.py`.
"""


@dataclass(frozen=True)
class Row:
    """`area` is what goes wrong: an item, the place of a run, a server, a process or the disk."""

    area: str
    when: str
    then: str
    test: str


def happens(area: str, when: str, then: str) -> pytest.MarkDecorator:
    """Marks a test, or a class of tests, as the proof of one row: `when` this happens, `then` that does. Literals only:
    the table is read from the source."""
    assert area in AREAS, area
    return pytest.mark.happens(area=area, when=when, then=then)


def document() -> str:
    """The whole document, as the tests have it."""
    rows = sorted(_rows(), key=lambda row: (AREAS.index(row.area), row.when))
    sections = [_section(area, [row for row in rows if row.area == area]) for area in AREAS]
    return "\n".join([HEAD, *(section for section in sections if section)])


def _section(area: str, rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = [f"| {row.when} | {row.then} | `{row.test}` |" for row in rows]
    return "\n".join([f"## {area.capitalize()}", "", "| when | then | test |", "|---|---|---|", *lines, ""])


def _rows() -> Iterator[Row]:
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "happens":
                        area, when, then = (ast.literal_eval(argument) for argument in mark.args)
                        yield Row(area, when, then, f"{path.relative_to(TESTS).as_posix()}::{node.name}")


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document(), encoding="utf-8")
