"""The table of an evaluation's episodes, a row each: what `episodes.csv` holds."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Self

import numpy as np

from vlatrack.errors import DataError
from vlatrack.evaluation.episodes import OUTCOMES, EpisodeId, Outcome

TABLE = "episodes.csv"
"""The file's name in the folder of an evaluation."""
SHOWN_TABLE = "episodes.json"
"""The same as trackers show it."""


@dataclass(frozen=True)
class EpisodeRow:
    """One row; numbers are text as the file has them."""

    task: str
    initial_state: str
    seed: str
    outcome: Outcome
    steps: str
    reward: str
    latency_p50_ms: str
    latency_p95_ms: str
    video: str  # path in the folder of the evaluation; empty: none
    reason: str  # of an error

    @classmethod
    def of(
        cls,
        episode: EpisodeId,
        outcome: Outcome,
        *,
        steps: int,
        reward: float,
        latencies: Sequence[float],
        video: str = "",
        reason: str = "",
    ) -> Self:
        """``latencies`` are the seconds of each decision of the policy."""
        p50, p95 = (f"{1e3 * float(np.quantile(latencies, q)):.3f}" if latencies else "" for q in (0.5, 0.95))
        shown = " ".join(reason.split())
        return cls(
            episode.task,
            episode.initial_state,
            episode.seed,
            outcome,
            str(steps),
            f"{reward:.6g}",
            p50,
            p95,
            video,
            shown,
        )

    @property
    def id(self) -> EpisodeId:
        return EpisodeId(self.task, self.initial_state, self.seed)


HEADER = tuple("return" if field.name == "reward" else field.name for field in fields(EpisodeRow))


_SHOWN = {
    "outcome": "outcome",
    "task": "task",
    "video": "video",
    "env steps": "steps",
    "return": "reward",
    "initial state": "initial_state",
    "seed": "seed",
    "reason": "reason",
    "latency p50 (ms)": "latency_p50_ms",
    "latency p95 (ms)": "latency_p95_ms",
}
"""The columns of the shown table."""
_NUMBERS = ("reward", "latency_p50_ms", "latency_p95_ms")


def lines(rows: Iterable[EpisodeRow | Sequence[str]]) -> str:
    """CSV text of rows, each of which ends with a line break."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(astuple(row) if isinstance(row, EpisodeRow) else row for row in rows)
    return text.getvalue()


def shown_table(rows: Iterable[EpisodeRow]) -> dict[str, list[Any]]:
    """The rows by ``columns`` and ``data``, with numbers as such, for people to look at: those with a video first, and
    of these the failures; columns that are empty are left out."""
    order = sorted(rows, key=lambda row: (not row.video, row.outcome == "success"))
    columns = {title: name for title, name in _SHOWN.items() if any(getattr(row, name) for row in order)}
    return {"columns": list(columns), "data": [[_shown(row, name) for name in columns.values()] for row in order]}


def _shown(row: EpisodeRow, name: str) -> str | float | None:
    text: str = getattr(row, name)
    if text.isdecimal():
        return int(text)
    return (float(text) if text else None) if name in _NUMBERS else text


def parse_rows(text: str, place: str) -> list[EpisodeRow]:
    """The rows of a table.

    Raises:
        DataError: it is not such a table, or damaged.
    """
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    except (csv.Error, ValueError) as error:
        raise DataError(f"{place}: no table of episodes ({error}); restore or remove it") from error
    if tuple(header) != HEADER:
        raise DataError(f"{place}: its first line is not that of an evaluation; restore or remove it")
    parsed = []
    for number, row in enumerate(rows, start=2):
        if len(row) != len(HEADER) or row[3] not in OUTCOMES:
            raise DataError(f"{place}: row {number} is damaged; restore or remove the file")
        outcome: Outcome = OUTCOMES[OUTCOMES.index(row[3])]
        parsed.append(EpisodeRow(row[0], row[1], row[2], outcome, *row[4:]))
    return parsed
