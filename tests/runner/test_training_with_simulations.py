"""`evaluate.closed_loop` in real runs: equal results, kills, signals, failures, early stopping, several ranks."""

import csv
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from program import TOY, Program, finish_of

from vlatrack.errors import VlatrackError
from vlatrack.runner.closed_loop import Options, evaluate_in_simulator
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tracking.journal.history import metric_history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EVALUATION = """
name: arena
suite: {kind: custom, name: arena, target: "toy_arena:ToyArena", tasks: [push, pull], options: {notes: NOTES}}
episodes: 3
first_seed: 0
max_steps: 7
cameras: {top: front}
"""
PLAIN = ("tracking.system_every_s=null", "evaluate.open_loop=null", "train.checkpoint.best_metric=sim/arena/success")
LONG_S = 500
"""Seconds in which an evaluator has loaded torch and ended an episode, however many tests share the cores."""
SLOWLY = "evaluate.closed_loop.overrides=['suite.options.pause_s=0.15']"


def outcome_of(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, errors = process.communicate(timeout=LONG_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


class Scene:
    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.notes = program, folder / "notes"
        self.notes.mkdir()
        (folder / "arena.yaml").write_text(EVALUATION.replace("NOTES", str(self.notes)))

    def start(self, *overrides: str) -> "subprocess.Popen[str]":
        return self.program.start("run", TOY, *self.settings(*overrides))

    def run(self, *overrides: str) -> "subprocess.CompletedProcess[str]":
        return outcome_of(self.start(*overrides))

    def settings(self, *overrides: str) -> list[str]:
        return [*PLAIN, "evaluate.closed_loop.evaluation=arena.yaml", *overrides]

    @property
    def trained(self) -> Path:
        return self.program.only_run()

    def rows(self, folder: Path) -> list[dict[str, str]]:
        with (folder / "episodes.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [
            {name: value for name, value in row.items() if not name.startswith(("latency", "video"))} for row in rows
        ]

    def rows_so_far(self) -> int:
        tables = self.program.folder.glob("runs/*/*/evaluation/arena-step-*/episodes.csv")
        return sum(table.read_bytes().count(b"\n") - 1 for table in tables)

    def begun(self) -> int:
        return sum(len(file.read_text().splitlines()) for file in self.notes.iterdir())

    def events(self, name: str) -> list[dict]:
        records = [json.loads(line) for line in (self.trained / "journal.jsonl").read_text().splitlines()]
        return [record["data"]["data"] for record in records if record["data"].get("name") == name]

    def success(self) -> list[tuple[int, float]]:
        return metric_history(self.trained / "journal.jsonl").get("sim/arena/success", [])


@pytest.fixture
def scene(program: Program, tmp_path: Path) -> Scene:
    return Scene(program, tmp_path)


def family_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def evaluator_of(process: "subprocess.Popen[str]") -> psutil.Process:
    (found,) = [child for child in family_of(process) if "vlatrack.runner.evaluator" in child.cmdline()]
    return found


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_checkpoint_evaluated_while_training_has_the_table_that_evaluate_gives_afterwards(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = scene.run("train.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "waiting for the evaluation arena of step-" in done.stdout
    assert "success 66.7%" in done.stdout
    steps = [step for step, _ in scene.success()]
    assert steps[-1] == 30
    for step in steps:
        name = f"arena-step-{step:08d}"
        during = scene.trained / "evaluation" / name
        checkpoint = scene.trained / "checkpoints" / f"step-{step:08d}"
        output = scene.program.folder / name
        found = evaluate_in_simulator(
            checkpoint, scene.program.folder / "arena.yaml", options=Options(output=output, videos=0)
        )
        assert scene.rows(during) == scene.rows(output)
        history = metric_history(scene.trained / "journal.jsonl")
        assert {name: dict(history[name])[step] for name in found.metrics} == found.metrics
    before = len(scene.events("simulation"))
    monkeypatch.chdir(scene.program.folder)
    evaluate_in_simulator(scene.trained, "arena.yaml", checkpoint="last")
    assert len(scene.events("simulation")) == before, "what the training has recorded is not recorded again"
    assert (scene.trained / "checkpoints" / "best.json").exists()
    assert not list((scene.trained / "evaluation").glob("*.record.json"))


def test_after_a_kill_the_evaluation_is_gone_and_a_resumed_run_goes_on_with_it(
    scene: Scene, eventually: Callable[..., None]
) -> None:
    process = scene.start("train.epochs=2", SLOWLY)
    eventually(lambda: scene.rows_so_far() >= 2, LONG_S)
    family = family_of(process)
    assert len(family) >= 2, "the evaluator and its simulator"
    process.kill()
    process.communicate()
    eventually(lambda: all_gone(family))
    rows, begun = scene.rows_so_far(), scene.begun()
    assert scene.success() == []
    resumed = outcome_of(scene.program.start("run", "--resume", scene.trained))
    assert resumed.returncode == 0, resumed.stderr
    assert finish_of(scene.trained)["status"] == "FINISHED"
    evaluated = [event["checkpoint"] for event in scene.events("simulation")]
    assert len(evaluated) == len(set(evaluated)) == len(scene.success())
    assert evaluated[-1] == "step-00000030"
    assert scene.begun() == 6 * len(evaluated) + begun - rows, "no episode that had ended was begun again"


def test_a_signal_ends_the_wait_for_the_last_evaluation_and_a_resumed_run_finishes_it(
    scene: Scene, eventually: Callable[..., None]
) -> None:
    process = scene.start("train.max_steps=3", SLOWLY)
    for rows, number, status in ((1, signal.SIGTERM, 143), (3, signal.SIGINT, 130)):
        eventually(lambda count=rows: scene.rows_so_far() >= count, LONG_S)
        family = family_of(process)
        process.send_signal(number)
        process.communicate(timeout=LONG_S)
        assert process.returncode == status
        assert finish_of(scene.trained)["status"] == "KILLED"
        eventually(lambda processes=family: all_gone(processes))
        assert scene.success() == []
        process = scene.program.start("run", "--resume", scene.trained)
    _, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, errors
    assert [step for step, _ in scene.success()] == [3]
    assert len(scene.events("simulation")) == 1


def test_an_evaluator_that_is_killed_is_told_and_the_training_goes_on(
    scene: Scene, eventually: Callable[..., None]
) -> None:
    process = scene.start("train.max_steps=3", "train.early_stopping.patience=1", SLOWLY)
    eventually(lambda: scene.rows_so_far() >= 1, LONG_S)
    evaluator_of(process).kill()
    told, errors = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, errors
    assert finish_of(scene.trained)["status"] == "FINISHED"
    (failed,) = scene.events("simulation_failed")
    assert failed["reason"] == "exit status -9"
    assert f"failed: exit status -9; its log: {scene.trained / 'evaluation' / 'arena.log'}" in told
    assert "train.early_stopping: sim/arena/success was never measured" in told


def test_of_several_ranks_one_evaluates_and_all_end_early(scene: Scene) -> None:
    settings = scene.settings("train.epochs=400", "train.early_stopping.patience=1")
    done = outcome_of(scene.program.start_many("run", TOY, *settings))
    assert done.returncode == 0, done.stderr
    evaluated = [event["checkpoint"] for event in scene.events("simulation")]
    assert len(evaluated) == len(set(evaluated)) >= 2
    assert len(scene.events("early_stop")) == 1
    assert scene.begun() == 6 * len(evaluated)
    assert finish_of(scene.trained)["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("suite.target=toy_arena:Unready", "toy_arena:Unready: does not start (RuntimeError: no table)"),
        ("cameras={top: wrist}", "cameras: the policy sees front, the evaluation shows wrist"),
        ("acting.replan_every=9", "replan_every: 9, but a chunk has 3 steps"),
        ("suite.tasks=[pusch]", "suite.tasks.0: arena has no task 'pusch'; did you mean 'push'?"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_training(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, change: str, told: str
) -> None:
    monkeypatch.chdir(scene.program.folder)
    spec = load_spec(TOY, scene.settings(f"evaluate.closed_loop.overrides=['{change}']"))
    with pytest.raises(VlatrackError) as raised:
        run_experiment(spec)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list((scene.program.folder / "runs").glob("[!.]*")), "no run has begun"
