"""What a run leaves on the disk, without any tracker: history, status, artifacts, privacy."""

import contextlib
import json
import logging
import math
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.tracking.backends.registry import check_backend_available
from vlatrack.tracking.delivery.sync import sync_run
from vlatrack.tracking.delivery.worker import close_as_killed
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.privacy import redact, redact_param
from vlatrack.tracking.run import BackendConfig, RunStatus, TrackedRun, metric_history, run_status
from vlatrack.tracking.secret_shapes import HIDDEN
from vlatrack.tracking.trust import OWN_RUN

KEY = "planted-key-0123456789abcdef"


def start(run_dir: Path, *, resume: bool = False, **changes: object) -> TrackedRun:
    fields: dict[str, object] = {"backends": [], "params": {}, "tags": {}, "uid": "u1", **changes}
    return TrackedRun.start(run_dir, name="a run", experiment="exp", resume=resume, **fields)  # type: ignore[arg-type]


def test_history_has_the_last_value_of_each_step(run_dir: Path) -> None:
    run = start(run_dir)
    for step in (1, 2, 3):
        run.log({"train_closs": float(step)}, step=step)
    run.finish("FAILED", reason="lost power")
    run = start(run_dir, resume=True)
    for step in (2, 3, 4):
        run.log({"train_closs": step * 10.0, "epoch": 1}, step=step)
    run.finish("FINISHED")
    history = metric_history(run_dir / "journal.jsonl")
    assert history == {
        "train_closs": [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)],
        "epoch": [(2, 1), (3, 1), (4, 1)],
    }


def test_history_leaves_out_what_a_run_logged_beyond_the_checkpoint_that_it_went_back_to(run_dir: Path) -> None:
    run = start(run_dir)
    for step in range(1, 10):
        run.log({"train_closs": float(step), **({"val_ind_closs": 0.5} if step == 9 else {})}, step=step)
    run.finish("KILLED")
    run = start(run_dir, resume=True, resume_step=3)
    run.log({"train_closs": 40.0}, step=4)
    run.finish("FINISHED")
    assert metric_history(run_dir / "journal.jsonl") == {"train_closs": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]}


def test_status_says_how_a_run_ended_and_where(run_dir: Path) -> None:
    run = start(run_dir)
    run.log({"train_closs": 1.0}, step=5)
    assert run_status(run_dir) == RunStatus("RUNNING", None, 5)
    report = run.finish("FAILED", reason="ValueError: bad")
    assert run_status(run_dir) == RunStatus("FAILED", "ValueError: bad", 5)
    assert report.complete
    assert report.backends == ()
    with pytest.raises(TrackerError, match="no run directory"):
        run_status(run_dir.parent)


def test_a_run_is_not_overwritten_or_mixed_with_another(run_dir: Path) -> None:
    start(run_dir).finish("FINISHED")
    with pytest.raises(TrackerError, match="holds a run already; resume it"):
        start(run_dir)
    with pytest.raises(TrackerError, match="belongs to run u1, not to u2"):
        start(run_dir, uid="u2", resume=True)
    with pytest.raises(TrackerError, match="run uid"):
        start(run_dir.parent / "run-2", uid="a/b")


def test_what_is_no_number_is_left_out_with_one_warning_for_its_name(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = start(run_dir)
    with caplog.at_level(logging.WARNING):
        for step in (0, 1):
            run.log({"train_closs": 1.0, "text": "x", "list": [1]}, step=step)  # type: ignore[dict-item]
        run.log({"nan": math.nan}, step=2)
    run.finish("FINISHED")
    assert [record.getMessage().split(" is")[0] for record in caplog.records] == ["metric text", "metric list"]
    assert set(metric_history(run_dir / "journal.jsonl")) == {"train_closs", "nan"}


def test_logging_never_raises_whatever_it_is_given(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = start(run_dir)
    with caplog.at_level(logging.WARNING):
        run.log({"a": np.float32(0.5), "b": torch.tensor(2.0), "c": True}, step=np.float64(3))  # type: ignore[arg-type]
        for _ in range(2):
            run.log({"a": 1.0}, step="four")  # type: ignore[arg-type]
            run.log([("a", 1.0)], step=5)  # type: ignore[arg-type]
            run.log({7: 1.0, "many": torch.ones(2)}, step=torch.tensor(6))  # type: ignore[dict-item, arg-type]
        run.finish("FINISHED")
        run.log({"a": 1.0}, step=8)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(" (")[0].split(":")[0] for line in said[:3]] == [
        "a step is no whole number",
        "metrics are not logged",
        "metric many is not logged",
    ]
    assert "metrics that come after the end of the run are not logged" in said[3]
    assert len(said) == 4
    history = metric_history(run_dir / "journal.jsonl")
    assert history == {"a": [(3, 1.0), (6, 1.0)], "b": [(3, 2.0)], "c": [(3, 1.0)], "7": [(6, 1.0)]}


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "FINISHED", None),
        (SystemExit(0), "FINISHED", None),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (ValueError("bad"), "FAILED", "ValueError: bad"),
    ],
)
def test_a_with_block_ends_its_run_as_it_ends(
    run_dir: Path, error: BaseException | None, status: str, reason: str | None
) -> None:
    with contextlib.suppress(BaseException), start(run_dir) as run:
        run.log({"train_closs": 1.0}, step=1)
        if error is not None:
            raise error
    assert run_status(run_dir) == RunStatus(status, reason, 1)
    assert run.finish("FINISHED").complete  # too late to change anything
    assert run_status(run_dir) == RunStatus(status, reason, 1)


def test_the_status_stands_at_the_end_whatever_comes_after_it(run_dir: Path) -> None:
    with contextlib.suppress(ValueError), start(run_dir) as run:
        run.log({"train_closs": 1.0}, step=7)
        run.end("FINISHED")
        assert run_status(run_dir) == RunStatus("FINISHED", None, 7)
        run.end("FAILED", "too late")
        for number in range(3):
            (run_dir / f"{number}.png").write_bytes(bytes(1000))
            run.log_artifact(run_dir / f"{number}.png", name=f"figures/{number}.png")
        run.log({"train_closs": 2.0}, step=8)
        run.event("report_failed", {"reason": "no fonts"})
        raise ValueError("a figure")
    assert run.close().complete
    assert run_status(run_dir) == RunStatus("FINISHED", None, 7)
    assert [record.kind for record in read_records(run_dir / "journal.jsonl")] == [
        *("start", "metrics", "finish", "artifact", "artifact", "artifact", "event")
    ]
    run = start(run_dir, resume=True)
    assert run_status(run_dir).status == "RUNNING"
    run.close()
    assert run_status(run_dir) == RunStatus("KILLED", "closed without an end", 7)


def test_a_trainer_that_is_killed_after_the_end_has_finished_at_the_trackers_too(
    run_dir: Path, eventually: Callable[..., None]
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vlatrack.tracking.run import BackendConfig, TrackedRun\n"
        "csv = BackendConfig('custom', target='vlatrack.testing.csv_backend:CsvBackend')\n"
        "run_dir = Path(sys.argv[1])\n"
        "run = TrackedRun.start(run_dir, uid='u', name='n', experiment='e', backends=[csv], params={}, tags={})\n"
        "run.log({'train_closs': 0.5}, step=1); run.end('FINISHED')\n"
        "(run_dir / 'a.txt').write_text('a'); run.log_artifact(run_dir / 'a.txt', name='a.txt')\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, run_dir], check=False).returncode == -9
    at_tracker = run_dir / "csv" / "run.json"
    eventually(lambda: at_tracker.exists() and json.loads(at_tracker.read_text()).get("status") == "FINISHED")
    assert "artifact a.txt" in json.loads(at_tracker.read_text())
    assert run_status(run_dir) == RunStatus("FINISHED", None, 1)
    assert not close_as_killed(run_dir / "journal.jsonl")


def test_a_run_that_dies_at_its_very_beginning_can_be_delivered(run_dir: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vlatrack.tracking.journal.journal import Journal\n"
        "from vlatrack.tracking.run import BackendConfig, TrackedRun\n"
        "append = Journal.append\n"
        "Journal.append = lambda *words, **names: (append(*words, **names), os._exit(9))\n"
        "csv = BackendConfig('custom', target='vlatrack.testing.csv_backend:CsvBackend')\n"
        "TrackedRun.start(Path(sys.argv[1]), uid='u', name='n', experiment='e', backends=[csv], params={}, tags={})"
    )
    assert subprocess.run([sys.executable, "-c", code, run_dir], check=False).returncode == 9
    assert sync_run(run_dir, trust=OWN_RUN).complete
    assert json.loads((run_dir / "csv" / "run.json").read_text())["status"] == "KILLED"


def test_the_end_of_a_run_waits_for_space_on_the_disk(run_dir: Path) -> None:
    code = (
        "import resource, sys, threading; from pathlib import Path; from vlatrack.tracking.run import TrackedRun\n"
        "run_dir, free = Path(sys.argv[1]), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)\n"
        "run = TrackedRun.start(run_dir, uid='u', name='n', experiment='e', backends=[], params={}, tags={})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, ((run_dir / 'journal.jsonl').stat().st_size, free[1]))\n"
        "run.log({'a': 1.0}, step=1)\n"
        "threading.Timer(0.5, resource.setrlimit, (resource.RLIMIT_FSIZE, free)).start()\n"
        "print(run.finish('FINISHED').lost)"
    )
    ended = subprocess.run([sys.executable, "-c", code, run_dir], capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"  # the record, not the end
    assert ended.stderr.count("training goes on") == 1
    assert run_status(run_dir).status == "FINISHED"


def test_artifacts_are_recorded_with_digests_and_cannot_lie_outside(run_dir: Path, tmp_path: Path) -> None:
    run = start(run_dir)
    folder = run_dir / "checkpoints" / "epoch-1"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "deep" / "b.bin").write_bytes(b"")
    run.log_artifact(folder, name="checkpoints/epoch-1")
    (tmp_path / "secret").write_text("s")
    (run_dir / "link").symlink_to(tmp_path / "secret")
    (run_dir / "linked").mkdir()
    (run_dir / "linked" / "link").symlink_to(tmp_path / "secret")
    for path in (tmp_path / "secret", run_dir / ".." / ".." / ".." / "secret", run_dir / "link", run_dir / "linked"):
        with pytest.raises(TrackerError, match="lies outside the run directory"):
            run.log_artifact(path, name="x")
    with pytest.raises(TrackerError, match="no such file"):
        run.log_artifact(run_dir / "none", name="x")
    for name in ("../x", "/x", "a//b", "", ".hidden", "a/..", "a\nb"):
        with pytest.raises(TrackerError, match="artifact name"):
            run.log_artifact(folder, name=name)
    run.finish("FINISHED")
    (record,) = [record for record in read_records(run_dir / "journal.jsonl") if record.kind == "artifact"]
    empty, abc = "e3b0c44298fc1c149afbf4c8996fb924", "ba7816bf8f01cfea414140de5dae2223"
    assert {place: digest[:32] for place, digest in record.data["files"].items()} == {"a.bin": abc, "deep/b.bin": empty}


def test_secrets_of_the_environment_never_reach_the_disk(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    run = start(run_dir, params={"cmd": f"--key={KEY}", "hub.token": "abc", "n": 3}, tags={"url": f"http://me:{KEY}@h"})
    run.event("login", {"key": KEY, "password": "pw"})
    run.finish("FAILED", reason=f"401 for {KEY}")
    for file in run_dir.rglob("*"):
        assert not file.is_file() or KEY not in file.read_text()
    first = next(read_records(run_dir / "journal.jsonl"))
    assert first.data["params"] == {"cmd": f"--key={HIDDEN}", "hub.token": HIDDEN, "n": 3}
    assert redact("postgresql://user:secret@host/db") == f"postgresql://{HIDDEN}@host/db"
    assert redact_param("train.tokens", "32") == "32"


def test_folders_and_files_of_a_run_are_for_its_user_alone(run_dir: Path) -> None:
    start(run_dir).finish("FINISHED")
    for path in (run_dir.parent.parent, run_dir.parent, run_dir, *run_dir.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_backend_without_its_package_is_told_before_anything_starts(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vlatrack\[wandb\]'"):
        start(run_dir, backends=[BackendConfig("mlflow"), BackendConfig("wandb")])
    assert not run_dir.exists()
    with pytest.raises(TrackerError, match="unknown backend 'tensorboardx'"):
        check_backend_available("tensorboardx")


def test_a_password_in_a_tracking_address_is_refused(run_dir: Path) -> None:
    config = BackendConfig("mlflow", options={"tracking_uri": "postgresql://me:pw@db/mlflow"})
    with pytest.raises(TrackerError, match="holds a password") as told:
        start(run_dir, backends=[config])
    assert "pw" not in str(told.value).replace("password", "")


def test_looking_whether_backends_are_there_imports_neither(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()  # what offline runs leave behind is not the package
    code = (
        "import sys; from vlatrack.tracking.backends.registry import check_backend_available as check\n"
        "import vlatrack.tracking.run\n"
        "check('mlflow'); check('wandb'); print({'mlflow', 'wandb', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=_with_project()
    )
    assert done.stdout == "set()\n", done.stderr


def _with_project() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
