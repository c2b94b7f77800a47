"""Signals: a run that is stopped leaves a checkpoint, says how it ended, and can go on."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from program import TOY, Program, finish_of

from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tracking.lock import lock_holder
from vlatrack.tracking.run_files import RunFiles
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.store import CheckpointStore
from vlatrack.training.interruption import Interruption, Terminated
from vlatrack.training.process_group import ProcessGroup

ONE_EPOCH = ("train.epochs=1", "tracking.log_every=1", "tracking.system_every_s=null")


class SignalAt(Callback):
    """Sends this process a signal when a step is done."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step, self._number = step, number

    def on_step(self, state) -> None:
        if state.step == self._step:
            os.kill(os.getpid(), self._number)


def _run(tmp_path: Path, *callbacks: Callback, overrides: tuple[str, ...] = ()) -> Path:
    try:
        run_experiment(load_spec(TOY, [*ONE_EPOCH, *overrides]), runs=tmp_path / "runs", callbacks=callbacks)
    finally:
        (run,) = (tmp_path / "runs" / "toy").iterdir()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops."""
    return _run(tmp_path_factory.mktemp("whole"))


def _names(run: Path) -> list[str]:
    return [path.name for path in CheckpointStore(run / "checkpoints").all()]


@pytest.fixture
def hangup() -> Iterator[Callable[[signal.Handlers], object]]:
    """Sets what this process does at a SIGHUP, which under nohup is nothing."""
    before = signal.getsignal(signal.SIGHUP)
    yield partial(signal.signal, signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "raised", "reason"),
    [
        pytest.param(signal.SIGTERM, SystemExit, "SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, SystemExit, "SIGUSR1, the end of the job is near", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, SystemExit, "SIGHUP, the terminal was closed", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, KeyboardInterrupt, "interrupted from the keyboard", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_stopped_in_its_first_epoch_leaves_a_checkpoint_to_go_on_from(
    tmp_path: Path, whole: Path, hangup, number: signal.Signals, raised: type[BaseException], reason: str
) -> None:
    hangup(signal.SIG_DFL)
    with pytest.raises(raised):
        _run(tmp_path, SignalAt(3, number))
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    (name,) = _names(run)
    assert name in ("step-00000003", "step-00000004")
    assert (finish_of(run)["status"], finish_of(run)["reason"]) == ("KILLED", reason)
    resume_run(run)
    assert (run / "log_train.txt").read_text() == (whole / "log_train.txt").read_text()


@pytest.mark.slow
def test_a_signal_to_save_leaves_a_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    run = _run(tmp_path, SignalAt(3, signal.SIGUSR2), overrides=("train.checkpoint.keep_last=9",))
    assert finish_of(run)["status"] == "FINISHED"
    assert _names(run)[0] in ("step-00000003", "step-00000004")
    assert _names(run)[-1] == "step-00000015"


@pytest.mark.slow
def test_a_stop_during_an_evaluation_leaves_a_checkpoint_that_closes_the_epoch_anew(
    tmp_path: Path, whole: Path
) -> None:
    with pytest.raises(SystemExit):
        _run(tmp_path, SignalAt(15, signal.SIGTERM))  # the last step: what comes next is the evaluation
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert _names(run) == ["step-00000015"]
    assert not (run / "log_eval_ind.txt").exists()
    resume_run(run)
    for name in ("log_train.txt", "log_eval_ind.txt", "log_eval_ood.txt"):
        assert (run / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_a_run_that_is_stopped_at_its_last_step_takes_no_further_one_when_it_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        _run(tmp_path, SignalAt(4, signal.SIGTERM), overrides=("train.max_steps=4", "evaluate.open_loop=null"))
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert _names(run) == ["step-00000004"]
    resume_run(run)
    assert _names(run) == ["step-00000004"]
    assert len((run / "log_train.txt").read_text().splitlines()) == 1
    assert finish_of(run)["status"] == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_leaves_the_data_workers_to_the_last_step(
    program: Program, eventually, number: signal.Signals
) -> None:
    """As Slurm, `timeout` and a terminal send it."""
    settings = ("train.epochs=200", "train.workers=2", "evaluate.open_loop=null", "tracking.log_every=1")
    process = program.start("run", TOY, *settings)
    _read_until(process, "epoch 1/200")
    journal = program.only_run() / "journal.jsonl"
    eventually(lambda: '"step":18,' in journal.read_text())
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 130), err
    assert finish_of(program.only_run())["status"] == "KILLED"
    assert len(_names(program.only_run())) == 2  # that of the epoch, and one after the last step


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_output_any_more(program: Program) -> None:
    process = program.start("run", TOY, "train.max_steps=2", "evaluate.open_loop=null")
    _read_until(process, "run ")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert finish_of(program.only_run())["status"] == "FINISHED"


class FailsAtCheckpoint(Callback):
    """Ends a run where a kill may end it as well: right after a checkpoint is in place."""

    def on_checkpoint(self, state, path: Path, policy_sha256: str) -> None:
        raise RuntimeError(path.name)


@pytest.mark.slow
def test_an_end_right_after_the_last_checkpoint_loses_no_epoch_and_a_resume_finishes_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="step-00000002"):
        _run(tmp_path, FailsAtCheckpoint(), overrides=("train.max_steps=2",))
    (run,) = (tmp_path / "runs" / "toy").iterdir()
    assert finish_of(run)["status"] == "FAILED"
    resume_run(run)
    assert finish_of(run)["status"] == "FINISHED"
    for name in ("log_train.txt", "log_eval_ind.txt", "log_eval_ood.txt"):
        assert len((run / name).read_text().splitlines()) == 1


def _under_deferred_signals(*actions: Callable[[], object], grace_s: float = 60.0) -> None:
    with Interruption(ProcessGroup(), grace_s=grace_s) as signals:
        signals.deferred = True
        for action in actions:
            action()


def test_a_hangup_that_nohup_ignores_stays_ignored(hangup) -> None:
    for before, handled in ((signal.SIG_IGN, False), (signal.SIG_DFL, True)):
        hangup(before)
        with Interruption(ProcessGroup()):
            assert (signal.getsignal(signal.SIGHUP) is not before) == handled
        assert signal.getsignal(signal.SIGHUP) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_grace_ends_a_step_that_takes_too_long(number: signal.Signals) -> None:
    terminate = partial(os.kill, os.getpid(), number)
    with pytest.raises(SystemExit) as ended:
        _under_deferred_signals(terminate, signal.pause, grace_s=0.05)  # until the timer rings
    assert ended.value.code == 128 + number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_a_scheduler_sends_twice_waits_for_the_checkpoint(number: signal.Signals) -> None:
    send, after = partial(os.kill, os.getpid(), number), []
    _under_deferred_signals(send, send, partial(after.append, "it waits"))
    assert after == ["it waits"]


def test_a_second_press_of_ctrl_c_does_not_wait() -> None:
    interrupt, after = partial(os.kill, os.getpid(), signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt):
        _under_deferred_signals(
            interrupt, partial(after.append, "the first waits"), interrupt, partial(after.append, 2)
        )
    assert after == ["the first waits"]


def test_a_signal_that_one_of_several_ranks_gets_after_the_exchange_waits_for_the_next_one() -> None:
    """Saving at once would leave this rank alone in an exchange that the others never join."""
    group = ProcessGroup()
    group.world_size = 2
    with Interruption(group) as signals:
        signals.deferred = True
        requests = signals.take_requests()
        os.kill(os.getpid(), signal.SIGTERM)
        assert not signals.apply_requests(requests)
        signals.raise_if_stopped()  # such as after a checkpoint that is due anyway
        assert signals.apply_requests(signals.take_requests())
        with pytest.raises(Terminated):
            signals.raise_if_stopped()


def test_all_ranks_leave_an_evaluation_when_one_of_them_was_asked_to_end() -> None:
    group = ProcessGroup()
    group.world_size = 2
    group.sum = lambda numbers: [number + other for number, other in zip(numbers, [1.0, 0.0], strict=True)]
    with Interruption(group) as signals:
        assert signals.agree_to_stop()
        with pytest.raises(Terminated):
            signals.raise_if_stopped()


@pytest.mark.slow
def test_a_failing_figure_changes_nothing_of_how_a_run_ended(tmp_path: Path, monkeypatch, caplog) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("vlatrack.runner.execution.write_figures", no_space)
    run = _run(tmp_path, overrides=("evaluate.open_loop=null", "tracking.figures=true"))
    assert finish_of(run)["status"] == "FINISHED"
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (failed,) = [r["data"]["data"] for r in records if r["kind"] == "event" and r["data"]["name"] == "report_failed"]
    assert failed["reason"] == "OSError: no space left on device"
    assert "figures or uploads are incomplete" in caplog.text


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_draws_its_figures_is_finished(program: Program, eventually) -> None:
    process = program.start("run", TOY, *ONE_EPOCH, "tracking.figures=true", "tracking.backends=[{kind: mlflow}]")
    _read_until(process, "drawing figures")
    process.kill()
    process.wait()
    run = program.only_run()
    assert finish_of(run)["status"] == "FINISHED"
    eventually(lambda: lock_holder(RunFiles(run).delivery_lock) is None)  # the run's own delivery has ended
    done = program.run("sync", run, "--audit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FINISHED" in done.stdout


def _read_until(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    pytest.fail(f"the program never said {text!r}")
