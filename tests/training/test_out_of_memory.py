"""Memory that runs out: one line that says where, for how much, and what to do."""

import json
from pathlib import Path

import pytest
import torch
from program import TOY, finish_of

from vlatrack.errors import TrainingError
from vlatrack.metrics.losses import LossMetric
from vlatrack.models.losses.base import LossInputs, LossTerm
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tracking.journal.history import metric_history
from vlatrack.training.callback import Callback
from vlatrack.training.out_of_memory import telling_out_of_memory

FULL_GPU = (
    "CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is "
    "free. Including non-PyTorch memory, this process has 78.08 GiB memory in use."
)
TOLD = r"^step 7: out of GPU memory \(2\.25 GiB more are needed, the GPU has 79\.11 GiB\); lower"


class Greedy(LossTerm):
    """A loss term that wants 4 PiB in its third step, when it is trained."""

    metric = LossMetric("greedy", "what may happen to any of them")
    calls = 0

    def count(self, batch) -> float:
        return float(len(batch.action_rows))

    def total(self, inputs: LossInputs) -> torch.Tensor:
        type(self).calls += 1
        if type(self).calls == 3:
            torch.empty(1 << 52, dtype=torch.uint8)
        return inputs.actions.sum()


def test_a_step_that_needs_more_memory_than_there_is_ends_the_run_in_one_line(tmp_path: Path) -> None:
    term = f"loss.terms=[{{kind: custom, target: '{__name__}:Greedy', weight: 1}}]"
    spec = load_spec(TOY, [term, "train.micro_batch=null", "data.samples=[vla]", "tracking.system_every_s=null"])
    told = (
        r"step 3 with 16 rows x \d+ tokens: out of host memory \(4,194,304.00 GiB more are needed\); lower train.micro_"
    )
    with pytest.raises(TrainingError, match=told):
        run_experiment(spec, runs=tmp_path)
    (run,) = (tmp_path / "toy").iterdir()
    records = map(json.loads, (run / "journal.jsonl").read_text().splitlines())
    (end,) = [record["data"] for record in records if record["kind"] == "finish"]
    assert end["status"] == "FAILED"
    assert "step 3 with 16 rows" in end["reason"]


class GreedyOutsideOfTraining(LossTerm):
    """A loss term that wants 4 PiB when it is evaluated, for as long as it may."""

    metric = LossMetric("greedy", "what may happen to any of them")
    may = True

    def count(self, batch) -> float:
        return float(len(batch.action_rows))

    def total(self, inputs: LossInputs) -> torch.Tensor:
        if self.may and not torch.is_grad_enabled():
            torch.empty(1 << 52, dtype=torch.uint8)
        return inputs.actions.sum()


class Steps(Callback):
    def __init__(self) -> None:
        self.taken: list[int] = []

    def on_step(self, state) -> None:
        self.taken.append(state.step)


def test_an_evaluation_that_needs_more_memory_than_there_is_loses_no_step_of_its_epoch(tmp_path, monkeypatch) -> None:
    term = f"loss.terms=[{{kind: custom, target: '{__name__}:GreedyOutsideOfTraining', weight: 0}}]"
    spec = load_spec(TOY, [term, "train.max_steps=3", "data.samples=[vla]", "tracking.system_every_s=null"])
    with pytest.raises(TrainingError, match=r"^open-loop evaluation: out of host memory"):
        run_experiment(spec, runs=tmp_path)
    (run,) = (tmp_path / "toy").iterdir()
    monkeypatch.setattr(GreedyOutsideOfTraining, "may", False)
    steps = Steps()
    resume_run(run, overrides=["evaluate.open_loop.batch_size=4"], callbacks=[steps])
    assert steps.taken == []
    assert finish_of(run)["status"] == "FINISHED"
    assert "val_ind_closs" in metric_history(run / "journal.jsonl")


def test_a_full_gpu_is_told_with_its_size() -> None:
    with pytest.raises(TrainingError, match=TOLD), telling_out_of_memory("step 7"):
        raise torch.OutOfMemoryError(FULL_GPU)


def test_other_errors_of_torch_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), telling_out_of_memory("step 7"):
        raise RuntimeError("shapes cannot be multiplied")
