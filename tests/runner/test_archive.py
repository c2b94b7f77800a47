"""A run in one file: the same bytes for the same run, read back whole, and never trusted."""

import gzip
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.errors import VlatrackError
from vlatrack.reports.line_files import replace_text
from vlatrack.runner import archive as module
from vlatrack.runner.archive import opened_archive, write_archive
from vlatrack.runner.comparison.comparison import compare_runs


def packed(file: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def test_an_archive_has_the_same_bytes_whenever_it_is_packed_and_no_checkpoint(
    finished_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / finished_run.name
    shutil.copytree(finished_run, copy)
    for file in copy.rglob("*"):
        os.utime(file, (1, 1))
    write_archive(finished_run, tmp_path / "a.tar.gz")
    write_archive(copy, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with opened_archive(tmp_path / "a.tar.gz") as folder:
        assert folder.name == finished_run.name
        for name in ("spec.yaml", "manifest.json", "journal.jsonl", "log_train.txt", "evaluation/action_errors.csv"):
            assert (folder / name).read_bytes() == (finished_run / name).read_bytes()
        assert (folder / "report" / "losses.png").is_file()
        assert not (folder / "checkpoints").exists()
        assert not (folder / "delivery").exists()
    assert not folder.exists()


def test_checkpoints_are_packed_when_they_are_asked_for(finished_run: Path, tmp_path: Path) -> None:
    write_archive(finished_run, tmp_path / "a.tar.gz", with_checkpoints=True)
    with opened_archive(tmp_path / "a.tar.gz") as folder:
        assert list((folder / "checkpoints").glob("step-*/policy.safetensors"))


def test_the_commands_pack_show_and_compare_an_archive(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "toy.tar.gz"

    def call(*words: str | Path) -> str:
        done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False, env={"COLUMNS": "200"})
        assert done.exit_code == 0
        return done.output

    assert f"vlatrack show {file}" in call("export", finished_run, "--archive", file)
    for place in (file, finished_run):
        shown = call("show", place)
        assert f"toy/{finished_run.name}" in shown
        assert "FINISHED after 45 steps" in shown
        assert "seed=3" in shown
        assert "val_ind_closs" in shown
        assert f"vlatrack reproduce {place}" in shown
    found = compare_runs(file, finished_run)
    assert (found.settings, found.data, found.code) == ((), (), ())
    with pytest.raises(VlatrackError, match="is there already"):
        call("export", finished_run, "--archive", file)
    with pytest.raises(VlatrackError, match="--log: is for a policy"):
        call("export", finished_run, "--archive", "--log")


@pytest.mark.parametrize(
    ("foreign", "told"),
    [
        (member("../outside"), "holds '../outside', which lies outside of the run"),
        (member("run/../../outside"), "which lies outside of the run"),
        (member("/tmp/outside"), "holds '/tmp/outside', which lies outside of the run"),
        (member("run/link", tarfile.SYMTYPE, "/etc/passwd"), "holds 'run/link', a link or device"),
        (member("run/link", tarfile.LNKTYPE, "run/journal.jsonl"), "a link or device"),
        (member("run/device", tarfile.CHRTYPE), "a link or device"),
        (member("run/pipe", tarfile.FIFOTYPE), "a link or device"),
        (member("run/spec.yaml"), "no archive of a run; vlatrack export RUN --archive makes one"),
    ],
)
def test_an_archive_that_reaches_elsewhere_is_one_line_and_writes_nothing(
    tmp_path: Path, foreign: tarfile.TarInfo, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    file = packed(tmp_path / "hostile.tar.gz", (foreign, b"x" if foreign.type == tarfile.REGTYPE else b""))
    with pytest.raises(VlatrackError) as caught, opened_archive(file):
        pass
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert {path.name for path in tmp_path.rglob("*")} == {"temporary", "hostile.tar.gz"}


def bomb(file: Path) -> Path:
    return packed(file, (member("run/journal.jsonl"), b"\0" * (80 << 20)))


def many(file: Path) -> Path:
    return packed(file, *((member(f"run/{i}"), b"") for i in range(30)))


def long_header(file: Path) -> Path:
    header = member("run/x", tarfile.XHDTYPE)
    header.size = 1 << 31
    file.write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 1024))
    return file


def cut(file: Path) -> Path:
    whole = packed(file, (member("run/journal.jsonl"), os.urandom(100_000))).read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    return file


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (bomb, "would unpack to more than 80 MiB"),
        (many, "has more than 20 files"),
        (long_header, "a header of 2,147,483,648 bytes"),
        (cut, "damaged, or no archive of a run"),
    ],
)
def test_an_archive_that_is_too_much_or_damaged_is_one_line(
    tmp_path: Path, make: Callable[[Path], Path], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_FILES", 20)
    file = make(tmp_path / "a.tar.gz")
    with pytest.raises(VlatrackError) as caught, opened_archive(file):
        pass
    assert told in str(caught.value)


def test_an_archive_and_a_page_that_cannot_be_written_are_one_line_with_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal.jsonl").touch()
    (tmp_path / "file").touch()
    with pytest.raises(VlatrackError, match=r"^\S*/file/a\.tar\.gz: cannot be written \(Not a directory\); choose"):
        write_archive(tmp_path / "run", tmp_path / "file" / "a.tar.gz")
    with pytest.raises(VlatrackError, match=r"^\S*/file/c\.html: cannot be written \(Not a directory\)"):
        replace_text(tmp_path / "file" / "c.html", "x")


def test_a_file_that_is_no_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(VlatrackError, match="neither a run directory nor an archive of one"):
        compare_runs(tmp_path / "notes.txt", tmp_path / "notes.txt")
