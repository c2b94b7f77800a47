"""Evaluations of a policy in the toy arena, as processes: what to start, and what they have left."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml

SUITE = {"kind": "custom", "name": "arena", "target": "toy_arena:ToyArena", "tasks": ["push", "pull"]}
EVALUATION = {"name": "arena", "first_seed": 0, "max_steps": 7, "waits": 1, "cameras": {"top": "front"}}


class Arena:
    """One evaluation: its file, its results, and the episodes that have begun."""

    def __init__(self, folder: Path, *, episodes: int = 6, **options: object) -> None:
        """
        Args:
            episodes: of each of two tasks; every third is a failure.
            options: of `ToyArena`.
        """
        self.results, self.file, self._notes = folder / "results", folder / "arena.yaml", folder / "notes"
        self._notes.mkdir(parents=True)
        suite = SUITE | {"options": {"notes": str(self._notes), **options}}
        self.file.write_text(yaml.safe_dump(EVALUATION | {"suite": suite, "episodes": episodes}))

    def command(self, policy: Path | str, *others: str) -> list[str]:
        """The words of `vlatrack evaluate` of a policy, or of a server's."""
        subject = ["--policy", policy] if str(policy).startswith("ws:") else [str(policy)]
        return ["evaluate", *subject, str(self.file), "-o", str(self.results), *others]

    def rows(self) -> list[dict[str, str]]:
        """The table, without what depends on the time."""
        with (self.results / "episodes.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [{name: value for name, value in row.items() if not name.startswith("latency")} for row in rows]

    def count(self) -> int:
        """Rows of the table so far."""
        return len(self.rows()) if (self.results / "episodes.csv").exists() else 0

    def description(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.results / "evaluation.json").read_text())
        return content

    def begun(self) -> dict[str, int]:
        """How often each episode has begun."""
        return {file.name: len(file.read_text().splitlines()) for file in sorted(self._notes.iterdir())}

    def workers(self) -> set[str]:
        """The processes in which episodes have begun."""
        return {pid for file in self._notes.iterdir() for pid in file.read_text().split()}

    def attempts(self, pid: int) -> int:
        """How often the episode that a process has begun last has begun; 0: it has begun none."""
        begun = [file for file in self._notes.iterdir() if str(pid) in file.read_text().split()]
        last = max(begun, key=lambda file: file.stat().st_mtime, default=None)
        return 0 if last is None else len(last.read_text().split())

    def left_over(self) -> list[str]:
        """Files that serve a division, which is over."""
        found = [file.relative_to(self.results).as_posix() for file in self.results.rglob("*")]
        return [name for name in found if name.startswith(("parts", "claims")) or ".partial" in name]
