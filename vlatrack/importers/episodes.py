"""Reads the episodes of an evaluation that another program ran: a CSV file, or the JSON or SQLite file of vla-eval."""

import csv
import io
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlatrack.errors import DataError
from vlatrack.evaluation.comparison import Comparison, compare
from vlatrack.evaluation.episodes import OUTCOMES, EpisodeId, EpisodeTable, Outcome
from vlatrack.evaluation.rows import TABLE

COLUMNS = ("task", "initial_state", "seed", "outcome")
_SQLITE = b"SQLite format 3\0"
_Row = tuple[EpisodeId, Outcome]

_LAST_ATTEMPTS = """
    SELECT task_name, episode_id, metrics, failure_reason FROM episode_results WHERE rowid IN (
        SELECT MAX(rowid) FROM episode_results
        GROUP BY task_name, episode_id, json_extract(context, '$.task_idx'),
                 CASE WHEN json_extract(context, '$.task_idx') IS NULL THEN rowid END
    ) ORDER BY rowid
"""
"""An episode that was started again, because a process died, counts once: its last row."""


def read_episodes(file: Path) -> EpisodeTable:
    """The episodes in a file, whose kind its content tells, or in the folder of a `vlatrack evaluate`.

    A CSV file has the columns task, initial_state, seed and outcome (success, failure or error), and may have others.

    Raises:
        DataError: it cannot be read, is none of these, has no episodes, or one of them twice.
    """
    if file.is_dir():
        return _read_folder(file)
    content = _content_of(file)
    if content.startswith(_SQLITE):
        return EpisodeTable.of(file.name, _rows_of_sqlite(file))
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: neither CSV, JSON nor SQLite ({error.reason})") from error
    if text.lstrip().startswith("{"):
        return EpisodeTable.of(file.name, _rows_of_json(file, text))
    return EpisodeTable.of(file.name, _rows_of_csv(file, text))


def read_policies(files: Sequence[Path]) -> list[EpisodeTable]:
    """The episodes of several policies, by `read_episodes`; tables of one name are called by their paths."""
    tables = [read_episodes(file) for file in files]
    if len({table.name for table in tables}) == len(tables):
        return tables
    return [replace(table, name=str(file)) for table, file in zip(tables, files, strict=True)]


def compare_episodes(a: Path | str, b: Path | str, *, margin: float = 0.0, sequential: bool = False) -> Comparison:
    """Compare two policies on the same episodes, as `vlatrack compare` does.

    Args:
        a: the folder of an evaluation in a simulator, or a table that `read_episodes` reads.
        b: as ``a``.
        margin: that A's success rate minus B's is compared with, a fraction: -0.02 for "at most 2 pp worse".
        sequential: decide by an e-process, which may be looked at after every episode, instead of by the interval.

    Raises:
        DataError: one cannot be read, or they are not of the same episodes.
    """
    return compare(*read_policies([Path(a), Path(b)]), margin=margin, sequential=sequential)


def _read_folder(folder: Path) -> EpisodeTable:
    """An evaluation, which also says what its episode set is."""
    table, description = folder / TABLE, folder / "evaluation.json"
    if not table.is_file():
        raise DataError(f"{folder}: has no {TABLE}; give the folder of an evaluation in a simulator, or a table")
    settings: dict[str, str] = {}
    if description.is_file():
        try:
            said = json.loads(_content_of(description))
            settings = {name: str(value) for part in ("set", "versions") for name, value in said[part].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{description}: not that of an evaluation ({type(error).__name__}: {error})") from error
    text = _content_of(table).decode("utf-8", errors="replace")
    return EpisodeTable.of(folder.resolve().name, _rows_of_csv(table, text), settings)


def _content_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error


def _rows_of_csv(file: Path, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{file}: has no column {', '.join(missing)}; its first line names {', '.join(COLUMNS)}")
    try:
        for row in reader:
            task, state, seed, outcome = (row[column] for column in COLUMNS)
            if not task or state is None or seed is None:
                raise DataError(f"{file}:{reader.line_num}: a row without {'a task' if not task else 'all columns'}")
            if outcome not in OUTCOMES:
                raise DataError(f"{file}:{reader.line_num}: outcome {outcome!r} is none of {', '.join(OUTCOMES)}")
            yield EpisodeId(task, state, seed), outcome
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: no CSV ({error})") from error


def _rows_of_json(file: Path, text: str) -> Iterator[_Row]:
    try:
        result = json.loads(text)
        seed = result.get("seed")
        for task in result["tasks"]:
            for episode in task["episodes"]:
                yield _row_of_vla_eval(file, task["task"], seed, episode)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a result of vla-eval ({type(error).__name__}: {error})") from error


def _rows_of_sqlite(file: Path) -> Iterator[_Row]:
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            evaluations = connection.execute("SELECT safe_name, metadata FROM eval_metadata").fetchall()
            if len(evaluations) > 1:
                names = ", ".join(row["safe_name"] for row in evaluations)
                raise DataError(f"{file}: holds several evaluations ({names}); take the JSON file of one of them")
            config = json.loads(evaluations[0]["metadata"]).get("config") or {} if evaluations else {}
            seed = (config.get("params") or {}).get("seed")
            for row in connection.execute(_LAST_ATTEMPTS):
                episode = {**row, "metrics": json.loads(row["metrics"] or "{}")}
                yield _row_of_vla_eval(file, row["task_name"], seed, episode)
    except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not a recording of vla-eval ({type(error).__name__}: {error})") from error


def _row_of_vla_eval(file: Path, task: str, seed: object, episode: Mapping[str, Any]) -> _Row:
    """vla-eval counts what it calls a failure_reason, an exception or a lost connection, as a failure, too."""
    identity = EpisodeId(str(task), str(episode["episode_id"]), str(seed))
    if episode.get("failure_reason"):
        return identity, "error"
    success = episode["metrics"].get("success")
    if not isinstance(success, bool | int | float):
        raise DataError(f"{file}: the episode {identity} does not say whether it was a success")
    return identity, "success" if success else "failure"
