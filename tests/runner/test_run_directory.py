"""The directory of a new run."""

import os
import stat
from pathlib import Path

import pytest
from happens import happens
from program import TOY

from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.endings import write_traceback
from vlatrack.spec.load import load_spec
from vlatrack.tracking import run_files
from vlatrack.tracking.privacy import private_files


@happens("process", "two runs that start in the same second draw the same id", "each has a directory of its own")
def test_a_run_that_draws_the_id_of_another_leaves_that_alone_and_draws_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SameSecond(run_files.datetime):
        @classmethod
        def now(cls, tz: object = None) -> "SameSecond":
            return cls(2026, 1, 1)

    drawn = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(run_files, "datetime", SameSecond)
    monkeypatch.setattr(run_files.secrets, "token_hex", lambda _: next(drawn))
    spec = load_spec(TOY)
    first = RunDirectory.create(tmp_path, spec)
    (first.path / "journal.jsonl").touch()
    second = RunDirectory.create(tmp_path, spec)
    assert (first.path / "journal.jsonl").exists()
    assert [path.name[-4:] for path in (first.path, second.path)] == ["aaaa", "bbbb"]


def test_a_group_may_share_the_folder_of_its_runs_but_not_a_run(tmp_path: Path) -> None:
    usual = os.umask(0o002)
    try:
        with private_files():
            run = RunDirectory.create(tmp_path / "runs", load_spec(TOY))
    finally:
        os.umask(usual)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (run.path.parents[1], run.path.parent, run.path)]
    assert modes == [0o775, 0o775, 0o700]


def test_an_error_whose_text_is_not_utf_8_is_kept(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, load_spec(TOY))
    write_traceback(run, ValueError("no such file: bad-\udcff.png"))
    assert "bad-\\udcff.png" in (run.path / "error.txt").read_text()
    assert sorted(path.name for path in run.path.iterdir()) == ["error.txt", "spec.yaml"]
