"""Which run `--resume auto` and `--job` continue."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from program import TOY

from vlatrack.runner.run import resume_or_run, run_experiment
from vlatrack.runner.unfinished import claim_unfinished
from vlatrack.spec.load import load_spec
from vlatrack.tracking import lock
from vlatrack.tracking.delivery.report import delivery_report
from vlatrack.tracking.journal.history import run_status
from vlatrack.tracking.lock import FileLock, Holder, LockHeldError
from vlatrack.training.callback import Callback

QUICK = ("train.max_steps=2", "train.checkpoint.every_steps=1", "evaluate.open_loop=null")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs, with one that was killed after its last checkpoint."""
    run = run_experiment(load_spec(TOY, QUICK), runs=tmp_path_factory.mktemp("killed") / "runs").path
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "finish")
    journal.write_text("".join(lines[:end]))
    return run.parents[1]


@pytest.fixture
def runs(killed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(killed, tmp_path / "runs"))


def _taken(runs: Path, *overrides: str) -> str | None:
    claimed = claim_unfinished(runs, load_spec(TOY, [*QUICK, *overrides]))
    if claimed is None:
        return None
    claimed.release()
    return claimed.directory.path.name


def _only(runs: Path) -> Path:
    (run,) = (runs / "toy").iterdir()
    return run


def test_the_last_unfinished_run_of_the_same_experiment_is_continued(runs: Path) -> None:
    first = _only(runs)
    later = Path(shutil.copytree(first, first.with_name("20990101-000000-aaaa")))
    assert _taken(runs) == later.name
    assert _taken(runs, "tracking.log_every=1", "train.workers=1") == later.name  # neither decides the result
    shutil.rmtree(later / "checkpoints")  # as if it had been killed before its first checkpoint
    assert _taken(runs) == first.name


@pytest.mark.parametrize("override", ["optim.lr=0.1", "name=other", "init_from=runs/other", "train.epochs=7"])
def test_a_run_of_another_experiment_is_not_continued(runs: Path, override: str) -> None:
    assert _taken(runs, override) is None


def test_a_run_that_a_living_process_writes_or_has_claimed_is_left_to_it(runs: Path) -> None:
    spec = load_spec(TOY, QUICK)
    claimed = claim_unfinished(runs, spec)
    assert claimed is not None
    assert claim_unfinished(runs, spec) is None  # as the second of two jobs that start at once
    claimed.release()
    written = FileLock.acquire(_only(runs) / "journal.jsonl")
    assert claim_unfinished(runs, spec) is None
    written.release()
    assert _taken(runs) is not None


def test_a_run_of_a_container_that_was_just_killed_is_waited_for_and_continued(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ALIVE_S", 1.0)
    for file in ("journal", "resume"):  # as that container left them
        (_only(runs) / f"{file}.lock").touch()
        (_only(runs) / f"{file}.lease").write_text(json.dumps(asdict(Holder("a1b2c3", 7, 99, "this boot", "pid:[1]"))))
    assert _taken(runs) == _only(runs).name


def test_it_goes_on_where_it_was_killed_and_then_starts_anew_and_says_so(runs: Path) -> None:
    told: list[str] = []
    steps: list[int] = []

    class Said(Callback):
        def on_warning(self, text: str) -> None:
            told.extend([text] if text.startswith("--resume auto: ") else [])

        def on_step(self, state) -> None:
            steps.append(state.step)

    first, last = _only(runs), "step-00000002"
    shutil.rmtree(first / "checkpoints" / last)
    spec = load_spec(TOY, QUICK)
    for _ in range(2):
        resume_or_run(spec, runs=runs, callbacks=[Said()])
    assert told == [
        f"--resume auto: continues {first} from step-00000001",
        f"--resume auto: no unfinished run of this experiment in {runs / 'toy'}; a new one begins",
    ]
    assert steps == [2, 1, 2]
    assert len(list((runs / "toy").iterdir())) == 2


def test_a_job_that_is_started_again_goes_on_with_its_own_run_and_leaves_it_when_it_is_finished(tmp_path: Path) -> None:
    told: list[str] = []

    class Said(Callback):
        def on_warning(self, text: str) -> None:
            told.extend([text] if text.startswith(("--job", "nothing left")) else [])

    runs = tmp_path / "runs"
    spec = load_spec(TOY, [*QUICK, "tracking.backends=[tensorboard]"])

    def start(job: str) -> Path:
        told.clear()
        return resume_or_run(spec, runs=runs, job=job, callbacks=[Said()]).path

    first = start("a")
    assert told == [f"--job a: no run of it in {runs / 'toy'}; a new one begins"]
    assert start("b") != first
    assert told == [f"--job b: no run of it in {runs / 'toy'}; a new one begins"]
    (first / "delivery" / "tensorboard-0.json").unlink()  # as if it had been killed before it was delivered
    assert start("a") == first
    assert told[0] == f"--job a: {first} is finished"
    assert told[1].startswith(f"nothing left to train: {first} is done after 2 steps")
    assert delivery_report(first, ["tensorboard-0"]).complete
    journal = first / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    end = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == "finish")
    journal.write_text("".join(lines[:end]))  # as if it had been killed before its end
    assert start("a") == first
    assert told == [f"--job a: continues {first} from step-00000002"]
    assert run_status(first).status == "FINISHED"
    held = FileLock.acquire(journal)
    with pytest.raises(LockHeldError, match="has locked it; wait for it or stop it"):
        start("a")
    held.release()
    assert len(list((runs / "toy").iterdir())) == 2
