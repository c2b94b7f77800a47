"""A run that encodes its images while it trains is the run that takes them from the store."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from program import TOY, Program, finish_of

from vlatrack.spec.load import load_spec

STREAM = "data.images=stream"
AUGMENTED = (STREAM, "data.augmentation={crop: 0.7, brightness: 0.4}")
HISTORY = ("data.history=2", "backbone.max_seq_len=200", "train.epochs=1")


def losses_of(run: Path) -> dict[tuple[int, str], float]:
    """What was logged of losses and accuracies; of a step that was repeated what was logged last."""
    records = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    logged = [(record["step"], record["data"]) for record in records if record["kind"] == "metrics"]
    values = {(step, name): value for step, metrics in logged for name, value in metrics.items()}
    return {place: value for place, value in values.items() if any(part in place[1] for part in ("loss", "acc", "l1"))}


def weights_of(run: Path) -> list[str]:
    """Digests of the weights of the last checkpoint."""
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(last.glob("*.safetensors"))]


def train(program: Program, runs: str, *words: str, processes: int | None = None) -> Path:
    command = ("run", TOY, "--runs", runs, *words)
    done = program.run(*command) if processes is None else program.run_many(*command, processes=processes)
    assert done.returncode == 0, done.stderr
    return next((program.folder / runs).glob("toy/*/journal.jsonl")).parent


@pytest.mark.slow
def test_a_streamed_run_is_the_stored_one_to_the_bit(program: Program) -> None:
    stored = train(program, "stored", *HISTORY, "train.workers=0")
    streamed = train(program, "streamed", *HISTORY, STREAM, "train.workers=2")
    assert losses_of(streamed) == losses_of(stored)
    assert weights_of(streamed) == weights_of(stored) != []
    data = program.folder / "streamed" / ".cache" / "data"
    assert (data / "episodes").is_dir()
    assert not (data / "codes").exists()
    assert json.loads((streamed / "manifest.json").read_text())["images"] == "stream"


@pytest.mark.slow
def test_a_streamed_run_that_is_killed_goes_on_to_the_same_weights_with_other_workers(program: Program) -> None:
    words = (*AUGMENTED, "train.epochs=1", "train.checkpoint.every_steps=3", "train.checkpoint.keep_last=9")
    whole = train(program, "whole", *words, "train.workers=0")
    process = program.start("run", TOY, "--runs", "killed", *words, "train.workers=2")
    deadline = time.monotonic() + 200
    while not list(program.folder.glob("killed/toy/*/checkpoints/step-00000006")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (killed,) = program.folder.glob("killed/toy/*")
    done = program.run("run", "--resume", killed, "train.workers=1")
    assert done.returncode == 0, done.stderr
    assert losses_of(killed) == losses_of(whole)
    assert weights_of(killed) == weights_of(whole)
    again = train(program, "again", *words, "seed=4", "train.workers=0")
    assert weights_of(again) != weights_of(whole)


@pytest.mark.slow
def test_damage_that_is_met_in_training_is_one_line_with_the_episode(program: Program) -> None:
    source = "data.train={kind: custom, target: 'damaged_toy:DamagedToy', tasks: [push the square]}"
    (program.folder / "damaged_toy.py").write_text(
        "from torch.utils.data import get_worker_info\n"
        "from toy_source import ToySource\n"
        "from vlatrack.errors import DataError\n"
        "class DamagedToy(ToySource):\n"
        "    def frames(self, episode, camera):\n"
        "        if episode.index == 7 and get_worker_info() is not None:\n"
        "            raise DataError('toy: demo.mp4: damaged video; restore the file')\n"
        "        return super().frames(episode, camera)\n"
    )
    words = (STREAM, source, "train.epochs=1", "train.checkpoint.every_steps=1")
    done = program.run("run", TOY, *words, "train.workers=1")
    assert done.returncode == 2
    assert "toy: demo.mp4: damaged video; restore the file (episode 7, front); " in done.stderr
    assert "Traceback" not in done.stderr
    run = program.only_run()
    assert finish_of(run)["status"] == "FAILED"
    assert len(done.stderr.splitlines()) == 1


def test_there_is_nothing_to_tokenise_for_a_streamed_experiment(program: Program) -> None:
    done = program.run("data", "tokenize", TOY, STREAM)
    assert done.returncode == 0, done.stderr
    assert "nothing to encode" in done.stdout
    assert "data.images: stream" in done.stdout
    assert not (program.folder / "runs").exists()


def test_a_streamed_spec_that_was_written_out_is_the_same_again(tmp_path: Path) -> None:
    from vlatrack.spec.load import dump_spec

    spec = load_spec(TOY, AUGMENTED)
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "spec.yaml") == spec
