"""Which run a word means: a path, an archive, a run id or the beginning of one, or `latest~1`."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vlatrack.errors import DataError, SpecError
from vlatrack.runner.archive import is_archive, opened_archive
from vlatrack.runner.comparison.from_mlflow import PREFIX, run_of_mlflow
from vlatrack.runner.comparison.from_wandb import names_wandb_run, run_of_wandb
from vlatrack.runner.comparison.recorded import RecordedRun

_LATEST = re.compile(r"latest(?:~(\d{1,6}))?")
_TABLES = (".csv", ".json", ".sqlite", ".sqlite3", ".db")
MOST_NAMED = 3


def names_run(word: str) -> bool:
    """Whether a word means a run, and not the episodes of an evaluation."""
    path = Path(word)
    if path.is_dir():
        return (path / "journal.jsonl").exists() or (path / "spec.yaml").exists()
    if path.is_file():
        return is_archive(path)
    return not word.endswith(_TABLES) and "/evaluation/" not in word


def is_of_tracker(word: str) -> bool:
    """Whether a word means a run that a tracker has, which somebody else may have put there."""
    return word.startswith(PREFIX) or names_wandb_run(word)


@contextmanager
def run_folder(word: str, runs: Path) -> Iterator[Path]:
    """The directory of the run that a word means, while it lasts: of an archive, or of a run that a tracker has
    (`mlflow:RUN_ID`, `wandb:ENTITY/PROJECT/RUN_ID`), a private folder.

    Raises:
        SpecError: no run or several are meant.
        DataError: an archive is none of a run.
    """
    path = Path(word)
    if word.startswith(PREFIX):
        with run_of_mlflow(word, runs) as folder:
            yield folder
    elif names_wandb_run(word):
        with run_of_wandb(word) as folder:
            yield folder
    elif path.is_file():
        if not is_archive(path):
            raise SpecError(f"{word}: neither a run directory nor an archive of one (vlatrack export RUN --archive)")
        with opened_archive(path) as folder:
            yield folder
    elif path.is_dir() and word not in ("latest",):
        yield path
    else:
        yield find_run(word, runs)


def read_runs(words: Sequence[str], runs: Path) -> list[RecordedRun]:
    """The runs that the words mean; see ``run_folder``."""
    with ExitStack() as stack:
        return [RecordedRun.read(stack.enter_context(run_folder(word, runs)), place=word) for word in words]


def find_run(word: str, runs: Path) -> Path:
    """The run below ``runs`` that is meant by ``latest``, ``latest~2`` (the third last), the beginning of
    ``<run-id>`` or ``<experiment>/<run-id>``, or the characters behind the last ``-`` of its id.

    Raises:
        SpecError: none or several are meant.
    """
    known = _runs_below(runs)
    latest = _LATEST.fullmatch(word)
    if latest is not None:
        back = int(latest[1] or 0)
        if back >= len(known):
            raise SpecError(f"{word}: {runs} has {len(known)} runs; choose another folder of runs with --runs")
        return known[-1 - back]
    wanted = word.removeprefix(f"{runs}/").rstrip("/")
    named = {path: f"{path.parent.name}/{path.name}" for path in known}
    found = [path for path, full in named.items() if wanted in (path.name, full)] or [
        path
        for path, full in named.items()
        if wanted and (full.startswith(wanted) or path.name.startswith(wanted) or path.name.endswith(f"-{wanted}"))
    ]
    if not found:
        near = difflib.get_close_matches(wanted, [*named.values(), *(path.name for path in known)], n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SpecError(f"{word}: no such run directory or archive, and no run of {runs} is called so{hint}")
    if len(found) > 1:
        some = " and ".join(named[path] for path in found[:MOST_NAMED])
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise SpecError(f"{word}: fits {some}{more}; write more of the id")
    return found[0]


def _runs_below(runs: Path) -> list[Path]:
    """The oldest first."""
    try:
        found = [path.parent for path in runs.glob("*/*/journal.jsonl")]
    except OSError as error:
        raise DataError(f"{runs}: cannot be read ({error.strerror})") from error
    return sorted(found, key=lambda path: (path.name, path.parent.name))
