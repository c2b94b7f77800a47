"""A whole run with compiled layers; `tests/training/test_compilation.py` has the parts."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from program import TOY

from vlatrack.builders import training
from vlatrack.runner.run import run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.training.callback import Callback
from vlatrack.training.compilation import LENGTH_MULTIPLE, compile_blocks
from vlatrack.training.throughput import SPEEDS

SHORT = ("train.max_steps=4", "train.epochs=1", "optim.warmup_epochs=0.1", "tracking.log_every=1")
NO_DROPOUT = ("backbone.residual_dropout=0", "action_head.dropout=0", "evaluate.open_loop.max_samples=5")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's tracer reads it of hidden states
def test_a_compiled_run_pads_trains_and_evaluates_as_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[torch.Size] = []
    stages: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.extend(part.shape for part in inputs if isinstance(part, torch.Tensor) and part.dim() == 3)
        return graph.forward

    monkeypatch.setattr(training, "compile_blocks", partial(compile_blocks, backend=keep))
    told = Callback()
    monkeypatch.setattr(told, "on_stage", stages.append)
    plain, compiled = (metrics(tmp_path / word, told, f"train.compile={word}") for word in ("false", "true"))
    assert stages.count("compiling the decoder layers in the first step") == 1
    assert graphs
    assert all(shape[1] % LENGTH_MULTIPLE == 0 for shape in graphs if isinstance(shape[1], int))
    assert plain.keys() == compiled.keys()
    for at, value in plain.items():
        assert compiled[at] == pytest.approx(value, rel=1e-4, abs=1e-5), at


def metrics(folder: Path, callback: Callback, *overrides: str) -> dict[tuple[int, str], float]:
    spec = load_spec(TOY, [*SHORT, *NO_DROPOUT, "tracking.system_every_s=null", *overrides])
    run = run_experiment(spec, runs=folder, callbacks=[callback]).path
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): value
        for line in lines
        if line["kind"] == "metrics"
        for name, value in line["data"].items()
        if not name.endswith(tuple(SPEEDS))
    }
