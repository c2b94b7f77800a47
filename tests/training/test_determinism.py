import torch
from program import TOY

from vlatrack.runner.run import run_experiment
from vlatrack.spec.identity import canonical_hash
from vlatrack.spec.load import load_spec
from vlatrack.tracking.journal.history import metric_history
from vlatrack.training.callback import Callback
from vlatrack.training.determinism import deterministic_algorithms


class Looks(Callback):
    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_step(self, state) -> None:
        self.seen.append(torch.are_deterministic_algorithms_enabled())


def test_a_deterministic_training_has_such_kernels_alone_and_the_same_numbers_on_a_cpu(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    short = ["train.max_steps=3", "tracking.system_every_s=null", "tracking.figures=false"]
    losses = []
    for wanted in (False, True):
        looks = Looks()
        spec = load_spec(TOY, [*short, f"train.deterministic={str(wanted).lower()}"])
        run = run_experiment(spec, runs=tmp_path, callbacks=[looks])
        assert looks.seen == [wanted] * 3
        assert not torch.are_deterministic_algorithms_enabled(), "it ends with the training"
        losses.append(metric_history(run.journal)["train_loss"])
    assert losses[0] == losses[1]


def test_it_is_no_other_experiment() -> None:
    plain, strict = load_spec(TOY), load_spec(TOY, ["train.deterministic=true"])
    assert canonical_hash(plain) == canonical_hash(strict)


def test_what_was_set_before_is_set_again() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with deterministic_algorithms(wanted=True):
            pass
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
