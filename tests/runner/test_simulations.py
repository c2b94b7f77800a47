"""`evaluate.closed_loop` without processes: which checkpoint is evaluated next, what is kept, what is recorded."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from program import TOY

import vlatrack
from vlatrack.builders.closed_loop import load_closed_loops, simulated_metrics
from vlatrack.builders.policy import build_schema
from vlatrack.runner import simulations as module
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.evaluation_folder import IDENTITY, EvaluationFolder
from vlatrack.runner.evaluation_record import EvaluationRecord
from vlatrack.runner.simulations import Simulations
from vlatrack.spec.load import load_spec
from vlatrack.tracking.backends.base import DatasetInput
from vlatrack.tracking.evaluated import EVALUATION_SET, Result
from vlatrack.tracking.journal.history import metric_history, run_status
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint import store as store_module
from vlatrack.training.checkpoint.contents import read_counters
from vlatrack.training.checkpoint.store import name_of, step_of
from vlatrack.training.state import TrainState

EVALUATION = """
name: arena
suite: {kind: custom, name: arena, target: "toy_arena:ToyArena", tasks: [push]}
episodes: 2
max_steps: 7
cameras: {top: front}
"""
STEPS_OF_AN_EPOCH = 10


class Evaluator:
    """In place of the process."""

    started: ClassVar[list["Evaluator"]] = []

    def __init__(self, job: Any, log: Path) -> None:
        self.job, self.status, self.ended = job, None, False
        Path(job.folder).mkdir(exist_ok=True)
        self.started.append(self)

    @property
    def step(self) -> int:
        return step_of(Path(self.job.checkpoint))

    def finish(self, success: float | None) -> None:
        self.status, self.success = 0 if success is not None else 1, success

    def poll(self) -> int | None:
        return self.status

    def record(self) -> EvaluationRecord:
        label = Path(self.job.evaluation).stem
        details = {"name": label, "digest": DIGEST, "folder": Path(self.job.folder).name}
        data = DatasetInput(label, "{}", DIGEST, EVALUATION_SET)
        results = [Result(data, {"sim/arena/success": self.success})]
        return EvaluationRecord("simulation", details, Path(self.job.checkpoint).name, None, results, [])

    def reason(self) -> str:
        return "it fell off the table (exit status 1)"

    def end(self) -> None:
        self.ended = True


DIGEST = "d" * 64


@dataclass
class Told(Callback):
    warnings: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)

    def on_simulation(self, evaluation: str, checkpoint: Path, metrics: Any) -> None:
        self.results.append(f"{evaluation} {step_of(checkpoint)} {metrics['sim/arena/success']}")


class Scene:
    """A run with checkpoints at the ends of its epochs, of which each begins with what the journal has."""

    def __init__(self, run: Path, evaluation: Path, *overrides: str) -> None:
        closed_loop = f"evaluate.closed_loop={{evaluation: {evaluation}}}"
        best = "train.checkpoint.best_metric=sim/arena/success"
        spec = load_spec(TOY, [closed_loop, best, *overrides])
        self.directory, self.told = RunDirectory(run), Told()
        resumed = self.directory.journal.exists()
        self.tracked = vlatrack.start_run("toy", runs=run.parents[1], backends=[], resume=run if resumed else None)
        self.directory = RunDirectory(self.tracked.path)
        loops = load_closed_loops(spec)
        self.simulations = Simulations(
            self.directory,
            self.tracked,
            loops,
            build_schema(spec, simulated_metrics(loops)),
            [self.told],
            best_metric="sim/arena/success",
            early_stopping=None,
            device="cpu",
        )

    def begin(self, step: int = 0) -> None:
        self.simulations.on_train_start(state_at(step), total_steps=1000, epochs=100)

    def save(self, *steps: int) -> None:
        for step in steps:
            path = self.directory.checkpoints.folder / name_of(step)
            path.mkdir(parents=True, exist_ok=True)
            (path / "files.json").write_text("{}")
            self.simulations.on_checkpoint(state_at(step), path, "0" * 64)

    def finish(self, success: float | None) -> None:
        Evaluator.started[-1].finish(success)
        self.simulations.on_step(TrainState())

    def end(self) -> "Scene":
        self.tracked.finish("FINISHED")
        return self


def state_at(step: int) -> TrainState:
    return TrainState(step=step, epoch=step // STEPS_OF_AN_EPOCH, step_in_epoch=step % STEPS_OF_AN_EPOCH)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    file = tmp_path / "arena.yaml"
    file.write_text(EVALUATION)
    return file


@pytest.fixture
def scene(tmp_path: Path, evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(module, "EvaluatorProcess", Evaluator)
    for reader in (module, store_module):
        monkeypatch.setattr(reader, "read_counters", lambda path: state_at(step_of(path)).counters())
    monkeypatch.setattr("vlatrack.builders.closed_loop.ClosedLoop.digest", lambda _: DIGEST)
    monkeypatch.setattr(Evaluator, "started", [])
    scene = Scene(tmp_path / "runs" / "toy" / "none", evaluation)
    scene.begin()
    yield scene
    scene.tracked.finish("FINISHED")


def test_one_checkpoint_is_evaluated_at_a_time_and_the_newest_waits(scene: Scene) -> None:
    scene.save(10, 20, 30)
    assert [evaluator.step for evaluator in Evaluator.started] == [10]
    assert scene.told.warnings == ["step-00000020 is not evaluated in arena: step-00000030 came while it waited"]
    scene.finish(0.5)
    assert [evaluator.step for evaluator in Evaluator.started] == [10, 30]
    scene.finish(0.25)
    assert scene.told.results == ["arena 10 0.5", "arena 30 0.25"]
    assert len(Evaluator.started) == 2


def test_checkpoints_are_in_use_while_they_are_evaluated_wait_or_are_the_best(scene: Scene) -> None:
    scene.save(10, 20, 30)
    assert scene.simulations.in_use() == {10, 30}
    scene.finish(0.5)
    assert scene.simulations.in_use() == {10, 30}, "10 is the best so far"
    scene.finish(0.75)
    assert scene.simulations.in_use() == {30}
    scene.save(40)
    scene.finish(0.75)
    assert scene.simulations.in_use() == {30}, "the first of equals stays the best"
    store = scene.directory.checkpoints
    store.delete(store.prune(keep_last=1, best_step=None, used=scene.simulations.in_use()))
    assert [path.name for path in store.all()] == [name_of(30), name_of(40)]
    assert store.find("best").name == name_of(30)


def test_only_checkpoints_at_the_end_of_the_epochs_that_are_due_are_evaluated(tmp_path: Path, evaluation: Path) -> None:
    scene = Scene(tmp_path / "runs" / "toy" / "none", evaluation, "evaluate.closed_loop.every_epochs=2")
    is_due = scene.simulations._is_due
    scene.simulations._total_steps = 50
    (loop,) = scene.simulations._loops.values()
    assert [step for step in range(0, 51, 5) if is_due(loop, state_at(step).counters())] == [20, 40, 50]
    assert is_due(loop, TrainState(step=30, epoch=3, stopped_early=True).counters())
    scene.end()


def test_a_result_stands_at_the_step_of_its_checkpoint_which_is_not_how_far_the_training_is(scene: Scene) -> None:
    scene.save(10)
    scene.tracked.log({"train_closs": 1.0}, step=17)
    scene.finish(0.5)
    journal = scene.directory.journal
    assert metric_history(journal)["sim/arena/success"] == [(10, 0.5)]
    assert (scene.tracked.last_step, run_status(scene.directory.path).last_step) == (17, 17)


def test_an_evaluation_that_fails_is_told_and_the_next_one_begins(scene: Scene) -> None:
    scene.save(10, 20)
    scene.finish(None)
    assert [evaluator.step for evaluator in Evaluator.started] == [10, 20]
    (told,) = scene.told.warnings
    log = scene.directory.evaluation / "arena.log"
    assert told == (
        f"the evaluation arena of step-00000010 failed: it fell off the table (exit status 1); its log: {log}"
    )


def test_a_rollback_ends_what_is_evaluated_of_later_checkpoints(scene: Scene) -> None:
    scene.save(10)
    scene.finish(0.5)
    scene.save(20, 30)
    scene.simulations.on_rollback(state_at(10), from_step=34)
    assert Evaluator.started[-1].ended
    assert scene.simulations.in_use() == {10}
    scene.save(20)
    assert [evaluator.step for evaluator in Evaluator.started] == [10, 20, 20], "20 is another checkpoint now"


def test_a_resumed_run_repeats_what_was_begun_and_nothing_that_is_recorded(scene: Scene, evaluation: Path) -> None:
    scene.save(10, 20)
    scene.finish(0.5)
    scene.save(30, 40, 50)
    scene.simulations.close()
    scene.end()
    again = Scene(scene.directory.path, evaluation)
    again.begin(50)
    assert [evaluator.step for evaluator in Evaluator.started] == [10, 20, 20]
    assert again.simulations.in_use() == {10, 20, 50}, "the best, the one that was begun, and the newest"
    again.finish(0.25)
    again.finish(0.75)
    again.save(50)
    assert [evaluator.step for evaluator in Evaluator.started] == [10, 20, 20, 50]
    history = metric_history(again.directory.journal)
    assert history["sim/arena/success"] == [(10, 0.5), (20, 0.25), (50, 0.75)]
    again.end()


def test_the_best_checkpoint_of_a_run_that_goes_back_is_one_that_is_still_there(scene: Scene, evaluation: Path) -> None:
    for step, success in ((10, 0.5), (20, 0.25), (30, 1.0)):
        scene.save(step)
        scene.finish(success)
    store = scene.end().directory.checkpoints
    assert store.find("best").name == name_of(30)
    store.set_aside_later(20, keep_last=1)
    assert store.find("best").name == name_of(20), "that of step 30 is gone, and nothing else is known"
    again = Scene(scene.directory.path, evaluation)
    again.begin(20)
    assert store.find("best").name == name_of(10)
    again.end()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("episods=1", "override 'episods=1'  episods: unknown key (did you mean 'episodes'?)"),
        ("suite={kind: metaworld, tasks: [windw-open-v3]}", "did you mean 'window-open-v3'?"),
    ],
)
def test_a_mistake_in_the_evaluations_file_is_one_line(evaluation: Path, overrides: str, told: str) -> None:
    spec = load_spec(TOY, [f"evaluate.closed_loop={{evaluation: {evaluation}, overrides: ['{overrides}']}}"])
    with pytest.raises(vlatrack.errors.SpecError) as raised:
        load_closed_loops(spec)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("name=arena", "two evaluations are called arena"),
        ("name=another", "arena and another both log sim/arena/success"),
    ],
)
def test_two_evaluations_have_names_and_metrics_of_their_own(evaluation: Path, second: str, told: str) -> None:
    both = f"[{{evaluation: {evaluation}}}, {{evaluation: {evaluation}, overrides: ['{second}']}}]"
    with pytest.raises(vlatrack.errors.SpecError, match=told):
        load_closed_loops(load_spec(TOY, [f"evaluate.closed_loop={both}"]))
    blind = both.replace(second, "acting.blind=true")
    assert [loop.label for loop in load_closed_loops(load_spec(TOY, [f"evaluate.closed_loop={blind}"]))] == [
        "arena",
        "arena-blind",
    ]


def test_a_metric_that_no_evaluation_measures_cannot_decide(evaluation: Path) -> None:
    closed_loop = f"evaluate.closed_loop={{evaluation: {evaluation}}}"
    spec = load_spec(TOY, [closed_loop, "train.checkpoint.best_metric=sim/arena/pus/success"])
    with pytest.raises(
        vlatrack.errors.SpecError, match=r"best_metric: no metric is called .*mean sim/arena/push/success"
    ):
        load_closed_loops(spec)
    spec = load_spec(TOY, [closed_loop, "train.early_stopping={metric: sim/arena/episodes, patience: 2}"])
    with pytest.raises(vlatrack.errors.SpecError, match=r"early_stopping\.metric: neither lower nor higher is better"):
        load_closed_loops(spec)


def test_a_result_is_recorded_anew_once_the_run_has_gone_back_over_its_checkpoint(scene: Scene) -> None:
    scene.save(10)
    scene.finish(0.5)
    record, journal = Evaluator.started[0].record(), scene.directory.journal
    assert record.is_in(journal)
    scene.tracked.rewind(11, 20)
    assert record.is_in(journal), "the checkpoint itself stands"
    scene.tracked.rewind(6, 20)
    assert not record.is_in(journal)


def test_results_of_another_policy_are_moved_aside_where_the_training_has_gone_back(tmp_path: Path) -> None:
    identity = dict.fromkeys(IDENTITY, "the same")
    folder = tmp_path / "arena-step-00000010"
    for policy in ("first", "second", "second", "third"):
        EvaluationFolder.open(folder, {**identity, "policy_sha256": policy}, [], set_aside=True).close()
    found = {path.name: json.loads((path / "evaluation.json").read_text()) for path in tmp_path.iterdir()}
    assert {name: content["policy_sha256"] for name, content in found.items()} == {
        "arena-step-00000010.1": "first",
        "arena-step-00000010.2": "second",
        "arena-step-00000010": "third",
    }


class AtOnce(Evaluator):
    """Done as soon as it begins."""

    def __init__(self, job: Any, log: Path) -> None:
        super().__init__(job, log)
        self.finish(0.5)


@pytest.mark.slow
def test_success_that_stands_still_ends_the_training(
    tmp_path: Path, evaluation: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "EvaluatorProcess", AtOnce)
    monkeypatch.setattr("vlatrack.runner.run.check_evaluation", lambda *_, **__: None)
    monkeypatch.setattr("vlatrack.builders.closed_loop.ClosedLoop.digest", lambda _: DIGEST)
    settings = [
        f"evaluate={{open_loop: null, closed_loop: {{evaluation: {evaluation}}}}}",
        "train.checkpoint={best_metric: sim/arena/success, keep_last: 1}",
        "train.early_stopping.patience=2",
        "train.epochs=30",
        "tracking.system_every_s=null",
    ]
    run = vlatrack.train(load_spec(TOY, settings), runs=tmp_path / "trained", callbacks=[told := Told()])
    ended = read_counters(run.checkpoints.find("last"))
    assert ended["stopped_early"]
    assert ended["epoch"] < 30
    history = metric_history(run.journal)["sim/arena/success"]
    assert [step for step, _ in history] == [15 * epoch for epoch in range(1, ended["epoch"] + 1)]
    assert [path.name for path in run.checkpoints.all()] == [name_of(15), name_of(ended["step"])]
    assert run.checkpoints.find("best").name == name_of(15), "equal ones do not take its place"
    assert Path(Evaluator.started[0].job.evaluation) == run.evaluation / "arena.yaml"
    vlatrack.resume(run.path, callbacks=[told])
    assert told.warnings[-1].startswith(f"nothing left to train: {run.path} ended early after {ended['step']} steps")
    longer = ["train.early_stopping=null", f"train.max_steps={ended['step'] + 15}"]
    vlatrack.resume(run.path, overrides=longer)
    assert read_counters(run.checkpoints.find("last"))["step"] == ended["step"] + 15
    assert [step for step, _ in metric_history(run.journal)["sim/arena/success"]] == [
        *[step for step, _ in history],
        ended["step"] + 15,
    ]
