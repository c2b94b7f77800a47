"""Runs of a notebook or a script: `start_run`, again and again in the same process."""

import inspect
import json
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from happens import happens

from vlatrack.errors import MissingPackageError, TrackerError
from vlatrack.tracking import run_files
from vlatrack.tracking.backends.mlflow.backend import MlflowBackend
from vlatrack.tracking.backends.registry import BUILT_IN, backend_config, backends_of
from vlatrack.tracking.backends.tensorboard import TensorboardBackend
from vlatrack.tracking.backends.wandb.backend import WandbBackend
from vlatrack.tracking.journal.journal import is_being_written
from vlatrack.tracking.journal.records import read_records
from vlatrack.tracking.run import BackendConfig, DatasetInput, TrackedRun, metric_history, run_status, start_run
from vlatrack.tracking.run_files import RunFiles

CSV = BackendConfig("custom", target="vlatrack.testing.csv_backend:CsvBackend")


def run_dirs(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "runs" / "exp").iterdir())


def test_each_call_is_a_new_run_with_its_own_id(tmp_path: Path) -> None:
    for lr in (1e-3, 1e-4):
        with start_run("exp", runs=tmp_path / "runs", backends=[], params={"lr": lr}, tags={"by": "me"}) as run:
            run.log({"train_closs": lr}, step=1)
    one, two = run_dirs(tmp_path)
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", one.name)
    starts = [next(read_records(path / "journal.jsonl")) for path in (one, two)]
    assert {start.data["params"]["lr"] for start in starts} == {1e-3, 1e-4}
    assert [start.run for start in starts] == [f"exp-{one.name}", f"exp-{two.name}"]
    assert starts[0].data["name"] == one.name
    assert run_status(one).status == run_status(two).status == "FINISHED"


def test_runs_that_begin_in_the_same_second_never_share_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(secrets, "token_hex", lambda _: next(drawn))
    for _ in range(2):
        start_run("exp", runs=tmp_path / "runs", backends=[]).finish("FINISHED")
    assert len(run_dirs(tmp_path)) == 2


def test_a_cell_that_was_interrupted_can_be_run_again(tmp_path: Path) -> None:
    left_open = start_run("exp", runs=tmp_path / "runs", backends=[CSV])  # no with, no finish
    left_open.log({"train_closs": 1.0}, step=1)
    with start_run("exp", runs=tmp_path / "runs", backends=[CSV]) as run:
        run.log({"train_closs": 2.0}, step=1)
    assert len(run_dirs(tmp_path)) == 2
    left_open.finish("KILLED")


def test_a_run_that_the_same_process_left_open_in_the_directory_is_killed_and_begins_again(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start() -> TrackedRun:
        return TrackedRun.start(run_dir, uid="u", name="n", experiment="e", backends=[CSV], params={}, tags={})

    interrupted = start()
    for step in range(5):
        interrupted.log({"train_closs": 1.0}, step=step)
    again = start()
    for step in range(3):
        again.log({"train_closs": 2.0}, step=step)
    interrupted.log({"train_closs": 3.0}, step=9)  # whoever still has it
    assert again.finish("FINISHED").complete
    ends = [record.data["status"] for record in read_records(run_dir / "journal.jsonl") if record.kind == "finish"]
    assert ends == ["KILLED", "FINISHED"]
    assert metric_history(run_dir / "journal.jsonl") == {"train_closs": [(0, 2.0), (1, 2.0), (2, 2.0)]}
    assert "this process has it open" in caplog.messages[0]
    with pytest.raises(TrackerError, match="holds a run already; resume it"):
        start()
    assert not is_being_written(run_dir / "journal.jsonl")


def test_a_run_tells_its_directory_and_its_id(tmp_path: Path) -> None:
    with start_run("exp", runs=tmp_path / "runs", backends=[]) as run:
        assert [run.path] == run_dirs(tmp_path)
    with start_run("exp", runs=tmp_path / "runs", backends=[], resume=run.run_id) as again:
        assert (again.path, again.run_id) == (run.path, run.path.name)


def test_a_file_is_logged_by_its_path_as_text_from_here_or_else_from_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here.txt").write_text("not of the run")
    with start_run("exp", runs=tmp_path / "runs", backends=[]) as run:
        monkeypatch.chdir(tmp_path)
        for name in ("here.txt", "notes.txt"):
            (run.path / name).write_text("of the run")
        run.log_artifact("notes.txt", name="a")
        run.log_artifact(f"runs/exp/{run.run_id}/notes.txt", name="b")
        run.log_artifact(str(run.path / "notes.txt"), name="c")
        run.log_artifact(Path("notes.txt"), name="d")
        for outside in ("here.txt", "../../../here.txt", f"runs/exp/{run.run_id}/../../../here.txt"):
            with pytest.raises(TrackerError, match=r"here\.txt: lies outside the run directory"):
                run.log_artifact(outside, name="e")
        with pytest.raises(TrackerError, match=r"artifact gone\.txt: no such file or folder"):
            run.log_artifact("gone.txt", name="f")
    logged = [r.data for r in read_records(run.path / "journal.jsonl") if r.kind == "artifact"]
    assert [(data["name"], data["place"]) for data in logged] == [(name, "notes.txt") for name in "abcd"]


def interrupt_once(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """Ctrl-C the next time that the main thread has called this function."""
    real, pressed = getattr(owner, name), []

    def interrupted(*arguments: object) -> object:
        done = real(*arguments)
        if threading.current_thread() is threading.main_thread() and not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(("owner", "name"), [(os, "fdatasync"), (threading.Thread, "join"), (os, "close")])
def test_ctrl_c_while_a_run_ends_is_raised_and_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    (path,) = run_dirs(tmp_path)
    with pytest.raises(KeyboardInterrupt), run:
        interrupt_once(monkeypatch, owner, name)
    assert not is_being_written(path / "journal.jsonl")
    assert not (path / "journal.lease").exists()
    assert run_status(path).status == "FINISHED"
    assert run.finish("FAILED").complete
    start_run("exp", runs=tmp_path / "runs", backends=[], resume=path.name).finish("FINISHED")
    assert [r.data["status"] for r in read_records(path / "journal.jsonl") if r.kind == "finish"] == ["FINISHED"] * 2


def test_ctrl_c_while_a_full_disk_is_waited_for_leaves_the_end_to_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    write, full = os.write, iter([True])
    monkeypatch.setattr(os, "write", lambda fd, line: 0 if next(full, False) else write(fd, line))
    interrupt_once(monkeypatch, time, "sleep")
    with pytest.raises(KeyboardInterrupt):
        run.finish("FINISHED")
    assert run_status(run_dirs(tmp_path)[0]).status == "FINISHED"


def test_the_trackers_of_a_run_whose_end_was_interrupted_hear_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[CSV])
    interrupt_once(monkeypatch, os, "fdatasync")
    with pytest.raises(KeyboardInterrupt):
        run.finish("FINISHED")
    told = run_dirs(tmp_path)[0] / "csv" / "run.json"
    eventually(lambda: told.exists() and json.loads(told.read_text()).get("status") == "FINISHED")
    eventually(lambda: not any(thread.name == "delivery-left" for thread in threading.enumerate()))


@pytest.mark.parametrize("by", ["id", "directory"])
def test_a_run_is_resumed_by_its_id_or_its_directory(tmp_path: Path, by: str) -> None:
    start_run("exp", name="first", runs=tmp_path / "runs", backends=[]).finish("FAILED")
    (path,) = run_dirs(tmp_path)
    with start_run("exp", runs=tmp_path / "runs", backends=[], resume=path.name if by == "id" else path) as run:
        run.log({"train_closs": 1.0}, step=1)
    first, again = (record for record in read_records(path / "journal.jsonl") if record.kind == "start")
    assert (first.run, first.data["name"]) == (again.run, again.data["name"])
    assert run_dirs(tmp_path) == [path]


def test_trackers_are_named_as_in_a_yaml_or_shorter(tmp_path: Path) -> None:
    custom = {"kind": "custom", "target": CSV.target, "options": {"folder": "table"}}
    start_run("exp", runs=tmp_path / "runs", backends=["tensorboard", custom, CSV]).finish("FINISHED", timeout_s=0)
    stored = backends_of(RunFiles(run_dirs(tmp_path)[0]).backends.read_text())
    assert stored == [
        BackendConfig("tensorboard"),
        BackendConfig("custom", target=CSV.target, options={"folder": "table"}),
        CSV,
    ]
    wandb = backend_config({"kind": "wandb", "project": "vla", "naming": "sections"})
    assert wandb == BackendConfig("wandb", "sections", {"project": "vla"})


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ({"project": "vla"}, "a backend needs a kind: mlflow, wandb, tensorboard or custom"),
        ({"kind": "wandb", "projct": "vla"}, "wandb: no option 'projct'; it has project, entity, mode"),
        ({"kind": "tensorboard", "folder": "x"}, "tensorboard: no option 'folder'; it has none"),
        ({"kind": "mlflow", "naming": "short"}, "naming 'short': choose one of documented, sections"),
        ("comet", "unknown backend 'comet'"),
        ({"kind": "custom", "target": "json:loads"}, "json:loads lacks open"),
        ({"kind": "mlflow", "tracking_uri": "http://me:pw@host"}, "holds a password"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_one_line_and_nothing_is_made(
    tmp_path: Path, backend: Mapping[str, str] | str, told: str
) -> None:
    with pytest.raises((TrackerError, MissingPackageError), match=told):
        start_run("exp", runs=tmp_path / "runs", backends=[backend])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"backends": "mlflow"}, r"backends='mlflow': not a list; write backends=\['mlflow'\]"),
        ({"backends": {"kind": "mlflow"}}, "backends: a dict is not a list; put it into brackets"),
        ({"backends": CSV}, "backends: a BackendConfig is not a list"),
        ({"backends": 5}, "backends: a int is not a list"),
        ({"backends": [None]}, "backends: None is no tracker; write a name such as 'mlflow'"),
        ({"params": {1: "a"}}, "params: the key 1 is no text; write '1'"),
        ({"params": {"p": {1, 2}}}, r"params\['p'\]: a value of type set cannot be kept; write str"),
        ({"params": {"p": torch.ones(2)}}, r"params\['p'\]: a value of type Tensor that cannot be kept"),
        ({"params": {"p": [object()]}}, r"params\['p'\]: a value of type list that cannot be kept"),
        ({"params": {"p": 10**5000}}, r"params\['p'\]: a value of type int that cannot be kept"),
        ({"params": [("a", 1)]}, "params: a value of type list is no mapping; write a dict"),
        ({"tags": {5: "n"}}, "tags: the key 5 is no text; write '5'"),
        ({"tags": {"n": None}}, r"tags\['n'\]: a value of type NoneType is no tag; give a text"),
        ({"tags": {"n": ["a"]}}, r"tags\['n'\]: a value of type list is no tag"),
        ({"name": 5}, "name: a value of type int is no text"),
        ({"group": Path("g")}, "group: a value of type PosixPath is no text"),
    ],
)
def test_an_argument_of_a_wrong_type_is_one_line_and_nothing_is_made(
    tmp_path: Path, arguments: Mapping[str, Any], told: str
) -> None:
    with pytest.raises(TrackerError, match=told) as error:
        start_run("exp", runs=tmp_path / "runs", **{"backends": [], **arguments})
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_numbers_and_paths_among_params_and_tags_are_kept_as_a_tracker_shows_them(tmp_path: Path) -> None:
    params = {"lr": np.float32(0.5), "n": np.int64(3), "t": torch.tensor(0.25), "p": Path("x"), "betas": (0.9, 0.95)}
    tags = {"n": 5, "x": 0.5, "on": True, "p": Path("x"), "token": "hidden", "by": "me"}
    run = start_run("exp", runs=tmp_path / "runs", backends=[], params={**params, "none": None}, tags=tags)
    run.finish("FINISHED")
    start = next(read_records(run.path / "journal.jsonl"))
    assert start.data["params"] == {"lr": 0.5, "n": 3, "t": 0.25, "p": "x", "betas": "[0.9, 0.95]", "none": None}
    assert start.data["tags"] == {"n": "5", "x": "0.5", "on": "true", "p": "x", "token": "***", "by": "me"}


@pytest.mark.parametrize(
    ("experiment", "resume", "told"),
    [
        ("a/b", None, "experiment 'a/b'"),
        ("", None, "experiment ''"),
        ("e" * 600, None, "experiment 'eee"),
        (None, None, "experiment None"),
        ("exp", "none", "none: no run to resume"),
    ],
)
def test_an_experiment_or_a_run_that_is_none_is_one_line(
    tmp_path: Path, experiment: str, resume: str | None, told: str
) -> None:
    with pytest.raises(TrackerError, match=told) as error:
        start_run(experiment, runs=tmp_path / "runs", resume=resume)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"uid": "a/b"}, "run uid 'a/b'"),
        ({"uid": None}, "run uid None"),
        ({"experiment": ""}, "experiment ''"),
        ({"experiment": "e" * 101}, "experiment 'eee"),
        ({"t_ms": math.nan}, "t_ms: a value of type float is no time"),
        ({"t_ms": -1}, "t_ms: -1 is no time between 1970 and 9999; give Unix milliseconds"),
        ({"datasets": [DatasetInput("d", Path("d"), "0", "train")]}, "datasets: source: a value of type PosixPath"),
    ],
)
def test_what_identifies_a_run_is_checked_before_anything_is_made(
    run_dir: Path, arguments: Mapping[str, Any], told: str
) -> None:
    fields = {"uid": "u", "name": "n", "experiment": "e", "backends": [], "params": {}, "tags": {}, **arguments}
    with pytest.raises(TrackerError, match=told):
        TrackedRun.start(run_dir, **fields)
    assert not run_dir.exists()


@happens(
    "place",
    "a run is resumed under the name of another experiment",
    "it is refused with one line that names the run's own, and the run stays as it is",
)
def test_a_run_is_not_resumed_in_another_experiment(tmp_path: Path) -> None:
    start_run("exp", runs=tmp_path / "runs", backends=[]).finish("FINISHED")
    (path,) = run_dirs(tmp_path)
    before = (path / "journal.jsonl").read_bytes()
    with pytest.raises(TrackerError, match="belongs to experiment exp, not to other; resume it as a run of that one"):
        start_run("other", runs=tmp_path / "runs", backends=[], resume=path)
    assert (path / "journal.jsonl").read_bytes() == before
    assert not is_being_written(path / "journal.jsonl")


@happens(
    "item",
    "a param or tag has an empty name, one of 40 CJK letters, or one of 300 ASCII letters",
    "the journal keeps the name as it is",
)
def test_names_that_a_tracker_may_not_take_are_kept_in_the_journal(tmp_path: Path) -> None:
    named = dict.fromkeys(("", "字" * 40, "p" * 300, "two\nlines"), "x")
    run = start_run("exp", runs=tmp_path / "runs", backends=[], params=named, tags=named)
    run.finish("FINISHED")
    start = next(read_records(run.path / "journal.jsonl"))
    assert start.data["params"] == start.data["tags"] == named


@pytest.mark.parametrize(
    ("kind", "backend"), [("mlflow", MlflowBackend), ("wandb", WandbBackend), ("tensorboard", TensorboardBackend)]
)
def test_the_options_that_are_checked_are_those_of_the_class(kind: str, backend: type) -> None:
    assert list(BUILT_IN[kind].options) == [
        name for name in inspect.signature(backend).parameters if name not in ("run_dir", "naming", "id_suffix")
    ]


@pytest.mark.slow
def test_the_cell_in_the_documentation_can_be_run_again(stored_run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "start_run" in block)
    assert len(code.splitlines()) <= 10
    folder = stored_run_dir.parents[2]
    stored_run_dir.rmdir()
    monkeypatch.chdir(folder)
    cells: dict[str, object] = {}
    for _ in range(2):
        exec(code, cells)
    statuses = [run_status(path.parent).status for path in (folder / "runs").glob("*/*/journal.jsonl")]
    assert statuses == ["FINISHED", "FINISHED"]


def test_a_mistake_in_a_resume_leaves_the_run_that_is_open_alone(tmp_path: Path) -> None:
    run = start_run("exp", runs=tmp_path / "runs", backends=[])
    with pytest.raises(TrackerError, match="belongs to experiment exp, not to typo"):
        start_run("typo", runs=tmp_path / "runs", backends=[], resume=run.path)
    run.log({"train_closs": 0.5}, step=1)
    run.finish("FINISHED")
    assert run_status(run.path).status == "FINISHED"


def test_what_is_no_path_is_one_line(tmp_path: Path) -> None:
    for wrong in ({"runs": None}, {"resume": 5}):
        with pytest.raises(TrackerError, match="no path; give a text or a Path"):
            start_run("exp", **{"runs": tmp_path, "backends": [], **wrong})


@happens(
    "process",
    "two processes call `start_run` in the same second and draw the same id",
    "each has a directory of its own",
)
def test_a_directory_that_another_process_makes_meanwhile_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SameSecond(run_files.datetime):
        @classmethod
        def now(cls, tz: object = None) -> "SameSecond":
            return cls(2026, 1, 1)

    def make_first(path: Path, **options: Any) -> None:
        if path.name.endswith("aaaa") and not path.exists():
            make(path)  # by the other process, between any look at the path and this
        make(path, **options)

    make, drawn = Path.mkdir, iter(["aaaa", "bbbb"])
    monkeypatch.setattr(run_files, "datetime", SameSecond)
    monkeypatch.setattr(run_files.secrets, "token_hex", lambda _: next(drawn))
    monkeypatch.setattr(Path, "mkdir", make_first)
    run = start_run("exp", runs=tmp_path, backends=[])
    run.finish("FINISHED")
    assert run.run_id.endswith("bbbb")
    assert list((tmp_path / "exp" / "20260101-000000-aaaa").iterdir()) == []
