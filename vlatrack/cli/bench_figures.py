"""Figures of a benchmark beside what is wanted of them, as a table in the terminal and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A row of the table: a measured value and its bound (`≤ 30 us`, `≥ 8000 /s`), if it has one."""

    what: str
    value: float
    unit: str
    bound: float | None
    at_most: bool = True

    @property
    def kept(self) -> bool:
        if self.bound is None:
            return True
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    @property
    def line(self) -> str:
        """The row of the table."""
        wanted = "" if self.bound is None else f"{'≤' if self.at_most else '≥'} {self.bound:,g} {self.unit}"
        value = f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.4g}"
        return _row(self.what, f"{value} {self.unit}", wanted)


def write_figures(output: Path, figures: Sequence[Figure]) -> None:
    """Write figures as a JSON file."""
    output.write_text(json.dumps([vars(figure) | {"kept": figure.kept} for figure in figures], indent=2) + "\n")


def _row(what: str, measured: str, wanted: str) -> str:
    return f"{what:<86}{measured:>18}{wanted:>20}".rstrip()


HEADING = _row("", "measured", "wanted")
"""Of the table."""
