"""Two runs that vlatrack 0.1.0 left behind, one finished and one killed, go on to be of use.

runs-of-0.1.0.tar.xz was made by that version on tests/support/toy.yaml with `train.epochs=3
train.checkpoint.every_steps=5 train.checkpoint.keep_last=1` and its two micro batches a step (`batch_size: 8,
accumulate: 2`). The killed run got SIGKILL in step 23, with its delivery process; the finished one is the same training
without that. Rows of the vocabulary that the toy does not use began as zeros, so that the archive is small.
"""

import json
import tarfile
from pathlib import Path

import pytest
from program import finish_of

from vlatrack.errors import SpecError
from vlatrack.runner.evaluate import evaluate_run
from vlatrack.runner.run import resume_run
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.manifest import read_manifest
from vlatrack.training.checkpoint.store import CheckpointStore

ARCHIVE = Path(__file__).with_name("runs-of-0.1.0.tar.xz")


@pytest.fixture
def old(tmp_path: Path) -> dict[str, Path]:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return {name: next((tmp_path / name / "runs" / "toy").iterdir()) for name in ("finished", "killed")}


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_run_resumes_to_its_end_with_other_draws_of_dropout(old) -> None:
    resume_run(old["killed"])
    assert finish_of(old["killed"])["status"] == "FINISHED"
    for name, split in (("log_train.txt", "train"), ("log_eval_ind.txt", "val"), ("log_eval_ood.txt", "val")):
        for resumed, expected in zip(_lines(old["killed"] / name), _lines(old["finished"] / name), strict=True):
            since_then = {name for name in resumed if name == "val_ece_action" or ("image" in name and split == "val")}
            assert resumed.keys() - since_then == expected.keys()
            for loss in ("loss", "closs", "z_loss", "loss_ct"):
                assert resumed[f"{split}_{loss}"] == pytest.approx(expected[f"{split}_{loss}"], rel=0.05)
    last = CheckpointStore(old["killed"] / "checkpoints").find("last")
    assert read_manifest(last).format == 3


def test_a_finished_run_evaluates_as_it_did_and_says_so_in_its_journal(old) -> None:
    evaluation = evaluate_run(old["finished"], checkpoint="last")
    logged = _lines(old["finished"] / "log_eval_ood.txt")[-1]
    assert evaluation.metrics["val_ood_closs"] == pytest.approx(logged["val_closs"], rel=1e-5)
    assert evaluation.metrics["val_ood_l1_loss_action_9"] == pytest.approx(logged["val_l1_loss_action_9"], rel=1e-5)
    records = _lines(old["finished"] / "journal.jsonl")
    measured = [r for r in records if r["kind"] == "metrics" and "evaluate/val_ood_closs" in r["data"]]
    assert [(r["step"], r["data"]["evaluate/val_ood_closs"]) for r in measured] == [
        (45, evaluation.metrics["val_ood_closs"])
    ]
    assert finish_of(old["finished"])["status"] == "FINISHED"


@pytest.mark.slow
def test_a_finished_run_has_nothing_left_to_train_and_can_be_extended(old) -> None:
    said: list[str] = []

    class Said(Callback):
        def on_warning(self, text: str) -> None:
            said.append(text)

    before = (old["finished"] / "journal.jsonl").read_bytes()
    resume_run(old["finished"], callbacks=[Said()])
    assert said[0].startswith("nothing left to train: ")
    assert said[0].endswith(f"extend it: vlatrack run --resume {old['finished']} train.epochs=6")
    assert (old["finished"] / "journal.jsonl").read_bytes() == before
    resume_run(old["finished"], overrides=["train.epochs=4"])
    assert [line["epoch"] for line in _lines(old["finished"] / "log_train.txt")] == [0, 1, 2, 3]


def test_what_has_changed_since_an_old_run_began_is_named(old) -> None:
    with pytest.raises(SpecError, match=r"\(optim\.lr: 0\.002 -> 0\.1; seed: 3 -> 4\)|\(seed: 3 -> 4; optim\.lr"):
        resume_run(old["killed"], overrides=["optim.lr=0.1", "seed=4"])


@pytest.mark.slow
def test_a_killed_run_is_delivered_to_a_tracker_that_had_nothing_of_it(program, old) -> None:
    done = program.run("sync", old["killed"], "--audit")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "KILLED" in done.stdout
    assert done.stdout.rstrip().endswith("same")
