"""A finding: what a check of the data saw, where, and what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Self

from vlatrack.errors import DataError

Severity = Literal["error", "warning"]

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """An error makes a result wrong or a training impossible; a warning may be intended."""

    severity: Severity
    check: str  # the name of what was checked, such as "overlap"
    where: str  # the dataset or the split, and the episodes
    message: str
    remedy: str
    count: int = 1  # how many episodes, dimensions or files it is about

    @classmethod
    def of_error(cls, check: str, where: str, error: DataError) -> Self:
        """What a DataError says, whose remedy stands behind its last semicolon."""
        message, _, remedy = str(error).rpartition("; ")
        return cls("error", check, where, message or remedy, remedy if message else "leave it out")

    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.where}: {self.message}; {self.remedy}"

    def data(self) -> dict[str, str | int]:
        """For JSON."""
        return asdict(self)


def errors_among(findings: Iterable[Finding]) -> list[Finding]:
    """Those that are errors."""
    return [finding for finding in findings if finding.severity == "error"]


def verdict(findings: Sequence[Finding]) -> str:
    """`no error, 2 warnings`: what was found, in one line."""
    errors = len(errors_among(findings))
    return f"{_number(errors, 'error')}, {_number(len(findings) - errors, 'warning')}"


def some(items: Sequence[object]) -> str:
    """The first few of many: `3, 8, 11 and 20 more`."""
    shown = ", ".join(map(str, items[:_SHOWN]))
    return f"{shown} and {len(items) - _SHOWN} more" if len(items) > _SHOWN else shown


def episodes_place(where: str, indexes: Sequence[int]) -> str:
    """`data.train, episodes 3, 8`: a place for a finding."""
    return f"{where}, episode{'' if len(indexes) == 1 else 's'} {some(indexes)}"


def plural(number: int, what: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _number(number: int, what: str) -> str:
    return f"no {what}" if number == 0 else plural(number, what)
