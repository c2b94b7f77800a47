"""What a user hands to `log_artifact`: whatever cannot be one is told at once, and nothing hangs."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from happens import happens

from vlatrack.errors import TrackerError
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.run import TrackedRun, start_run

NOBODY = 65534


@pytest.fixture
def run(tmp_path: Path) -> Iterator[TrackedRun]:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    yield run
    run.finish("FINISHED")


@pytest.fixture
def content(run: TrackedRun) -> Path:
    folder = run.path / "report"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    return folder


def refused(run: TrackedRun, path: Any, told: str, **changes: Any) -> None:
    with pytest.raises(TrackerError, match=told) as error:
        run.log_artifact(path, **{"name": "report", **changes})
    assert "\n" not in str(error.value)
    assert [record.kind for record in read_records(run.path / "journal.jsonl")] == ["start"]


@happens(
    "item",
    "an artifact is a pipe, a socket or a device, or a folder holds one",
    "one line names it; nothing hangs and nothing is written",
)
def test_what_is_no_file_is_refused(run: TrackedRun, content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = "{}: a pipe, socket or device; only files and folders can be logged"
    os.mkfifo(content / "pipe")
    for path in (content / "pipe", str(content / "pipe"), content):
        refused(run, path, told.format("pipe"))
    (content / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        (content / "deep").mkdir()
        monkeypatch.chdir(content / "deep")  # the whole path is too long for a socket
        server.bind("socket")
        refused(run, content, told.format("socket"))
    refused(run, "/dev/null", "lies outside the run directory")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("path", ["report/a.txt", "report"])
def test_a_file_or_folder_that_cannot_be_read_is_one_line(path: str) -> None:
    with (  # not in pytest's folder, which is closed to the other user
        tempfile.TemporaryDirectory() as place,
        start_run("exp", runs=Path(place) / "runs", backends=[]) as run,
    ):
        (run.path / "report" / "closed").mkdir(parents=True)
        (run.path / "report" / "a.txt").write_text("a")
        for folder in (Path(place), *(path for path in Path(place).rglob("*") if path.is_dir())):
            folder.chmod(0o700 if folder.name == "closed" else 0o755)
        (run.path / "report" / "a.txt").chmod(0o600)
        os.seteuid(NOBODY)
        try:
            with pytest.raises(TrackerError, match=r"^artifact '\S+': Permission denied; make it readable$"):
                run.log_artifact(run.path / path, name="report")
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("name", ["weights-\udcff", "two\nlines", "nul\x01"])
def test_a_file_whose_name_no_tracker_can_take_is_refused(run: TrackedRun, content: Path, name: str) -> None:
    (content / name).write_text("x")
    for path in (content / name, content):
        refused(run, path, "a path with a newline or another control character; choose another")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": 5}, "artifact name 5: use parts of letters"),
        ({"name": None}, "artifact name None: use parts of letters"),
        ({"name": "\udcff"}, r"artifact name '\\udcff': use parts of letters"),
        ({"aliases": "best"}, "aliases='best': not a list of texts"),
        ({"aliases": [1]}, r"aliases=\[1\]: not a list of texts"),
        ({"aliases": None}, "aliases=None: not a list of texts"),
        ({"sha256": ["ab"]}, r"sha256=\['ab'\]: no mapping of files to digests"),
        ({"sha256": {"a.txt": 5}}, "a.txt: its sha256 is not 64 hexadecimal digits"),
        ({"path": 5}, "5 is no path; give a text or a Path"),
        ({"path": b"report"}, "b'report' is no path"),
        ({"path": "a\0b"}, "a path with a newline or another control character"),
        ({"path": "n" * 5000}, "File name too long"),
    ],
)
def test_an_argument_that_is_of_no_use_is_one_line(
    run: TrackedRun, content: Path, changes: dict[str, Any], told: str
) -> None:
    refused(run, changes.pop("path", content), told, **changes)


def test_a_path_as_text_is_logged(run: TrackedRun, content: Path) -> None:
    run.log_artifact(str(content), name="report", aliases=("best",))
    (record,) = [record for record in read_records(run.path / "journal.jsonl") if record.kind == "artifact"]
    assert (record.data["place"], list(record.data["files"]), record.data["aliases"]) == ("report", ["a.txt"], ["best"])
