"""The pages of the documentation, their blocks of code, links and headings."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
NOT_RUN = "not run: "


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, what is said of it behind its language, and its text."""

    page: Path
    line: int
    said: str
    code: str

    @property
    def not_run(self) -> str | None:
        """Why it is only parsed; None: it is carried out."""
        assert not self.said or self.said.startswith(NOT_RUN), f"{self.page.name}:{self.line}: {self.said}"
        return self.said.removeprefix(NOT_RUN) or None

    def __str__(self) -> str:
        return f"{self.page.parent.name}/{self.page.name}:{self.line}"


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[3].strip(), found[4])
        for found in _BLOCK.finditer(text)
        if found[2] == language
    ]


def links(page: Path) -> list[str]:
    """What it links to, on this machine or elsewhere, without what stands in blocks of code."""
    return _LINK.findall(_prose(page))


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub names them."""
    headings = (re.sub(r"[^\w -]", "", heading.lower()) for heading in _HEADING.findall(_prose(page)))
    return {heading.strip().replace(" ", "-") for heading in headings}


def _prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))
