"""Runs that train adapters, or leave a part of the policy as it is."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from program import ENVIRONMENT, TOY, Program
from safetensors.torch import load_file

from vlatrack.builders.policy import StoredPolicy, adapter_of
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.runner.evaluate import evaluate_run
from vlatrack.runner.export import export_policy
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.identity import canonical_hash
from vlatrack.spec.load import load_spec

ADAPTER = "backbone.adapter={kind: lora, rank: 4, dropout: 0.1}"
NO_EVALUATION = "evaluate.open_loop=null"
FOUR_BITS = ("backbone.adapter={kind: lora, rank: 4, base: 4bit}", "train.precision=bf16")
FREEZE = "train.freeze=['*.layers.0.*', action_head.queries]"


def toy(*words: str):
    return load_spec(TOY, ["train.max_steps=4", "train.epochs=1", "optim.warmup_epochs=0", *words])


def weights(run: Path, checkpoint: str = "step-00000004") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / checkpoint / "policy.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter run, with a checkpoint in the middle."""
    spec = toy(ADAPTER, FREEZE, "train.checkpoint.every_steps=2")
    return run_experiment(spec, runs=tmp_path_factory.mktemp("adapters") / "runs").path


@pytest.mark.slow
def test_a_run_with_adapters_and_frozen_parts_resumes_bitwise(run: Path, tmp_path: Path) -> None:
    expected = weights(run)
    again = shutil.copytree(run, tmp_path / "runs" / "toy" / run.name)
    resume_run(again, checkpoint="step-00000002")
    resumed = weights(again)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    before = weights(run, "step-00000002")
    moved = {name for name, value in expected.items() if not torch.equal(before[name], value)}
    assert {name.split(".")[0] for name in moved} == {"backbone", "action_head"}
    assert all("lora_" in name for name in moved if name.startswith("backbone."))
    assert not any(".layers.0." in name or name == "action_head.queries" for name in moved)


@pytest.mark.slow
def test_an_exported_policy_has_its_adapters_merged_and_evaluates_as_before(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = export_policy(run, tmp_path / "policy", checkpoint="last")
    merged = load_file(tmp_path / "policy" / "policy.safetensors")
    assert merged.keys() == weights(run_experiment(toy(), runs=tmp_path / "plain").path).keys()
    stored = StoredPolicy.open(tmp_path / "policy", {})
    assert adapter_of(stored.spec) is None
    parent = StoredPolicy.open(run / "checkpoints" / "step-00000004", {}).record.policy_sha256
    assert (stored.record.policy_sha256, stored.record.lineage[-1]["policy_sha256"]) == (digest, parent)
    of_run, alone = evaluate_run(run, checkpoint="last"), evaluate_run(tmp_path / "policy")
    assert alone.metrics.keys() == of_run.metrics.keys()
    for name in ("val_ind_loss", "val_ood_loss", "val_ind_loss_ct"):
        assert alone.metrics[name] == pytest.approx(of_run.metrics[name], rel=1e-5)


@pytest.mark.slow
def test_adapters_start_from_a_policy_without_them_or_from_an_export(run: Path, tmp_path: Path) -> None:
    export_policy(run, tmp_path / "policy", checkpoint="last")
    spec = toy(ADAPTER, f"init_from={tmp_path / 'policy'}", "optim.lr=1e-12", "optim.weight_decay=0")
    started = weights(run_experiment(spec, runs=tmp_path / "runs").path)
    for name, value in load_file(tmp_path / "policy" / "policy.safetensors").items():
        now = started.get(name, started.get(name.removesuffix(".weight") + ".base_layer.weight"))
        torch.testing.assert_close(now, value, rtol=0, atol=1e-9)
    with pytest.raises(CheckpointError, match=r"^init_from: .*backbone\.adapter.*; start from its export, in which"):
        run_experiment(toy(f"init_from={run}@last"), runs=tmp_path / "runs")


def test_adapters_and_frozen_parts_make_another_experiment() -> None:
    plain = canonical_hash(toy())
    assert canonical_hash(toy("backbone.adapter=null", "train.freeze=[]")) == plain
    assert len({plain, *(canonical_hash(toy(word)) for word in (ADAPTER, FREEZE))}) == 3


def test_a_base_in_4_bits_is_not_kept_on_the_host() -> None:
    with pytest.raises(SpecError, match=r"backbone\.adapter\.base = 4bit keeps them; choose one of the two"):
        toy("backbone.adapter={kind: lora, base: 4bit}", "train.precision=bf16", "train.memory.offload=parameters")


@pytest.mark.parametrize(
    ("base", "precision", "told"),
    [
        ("bf16", "fp32", r"bf16 needs train\.precision: bf16 or fp8"),
        ("4bit", "fp32", r"4bit multiplies in bf16, not in fp32; set train\.precision to bf16, or base to bf16"),
        ("4bit", "fp8", r"4bit multiplies in bf16, not in fp8; set train\.precision to bf16, or base to bf16"),
    ],
)
def test_a_base_without_its_arithmetic_is_refused(base: str, precision: str, told: str) -> None:
    with pytest.raises(SpecError, match=rf"backbone\.adapter\.base = {told}"):
        toy(f"backbone.adapter={{kind: lora, base: {base}}}", f"train.precision={precision}")


@pytest.mark.slow
def test_two_processes_train_adapters_beside_a_bf16_base(program: Program) -> None:
    words = ("backbone.adapter={kind: dora, base: bf16}", "train.precision=bf16", "train.max_steps=2", NO_EVALUATION)
    done = program.run_many("run", TOY, *words)
    assert done.returncode == 0, done.stderr
    done = program.run("run", TOY, *words, "name=alone")
    assert done.returncode == 0, done.stderr
    two, one = (
        json.loads(next(program.folder.glob(f"runs/{name}/*/log_train.txt")).read_text().splitlines()[-1])
        for name in ("toy", "alone")
    )
    assert two["train_loss_ct"] == pytest.approx(one["train_loss_ct"], rel=0.1)


@pytest.mark.slow
def test_two_processes_each_hold_a_base_in_four_bits_and_train_as_one_does(program: Program) -> None:
    """Its layers are whole in both, what else there is, is sharded."""
    words = (*FOUR_BITS, "train.max_steps=3", "backbone.residual_dropout=0", "action_head.dropout=0", NO_EVALUATION)
    done = program.run_many("run", TOY, *words)
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr
    done = program.run("run", TOY, *words, "name=alone")
    assert done.returncode == 0, done.stderr
    losses, stored = [], []
    for name in ("toy", "alone"):
        (run,) = (program.folder / "runs" / name).glob("*/log_train.txt")
        losses.append(json.loads(run.read_text().splitlines()[-1])["train_loss"])
        parts = (run.parent / "checkpoints" / "step-00000003").glob("policy*.safetensors")
        tensors = {k: v for part in parts for k, v in load_file(part).items()}
        stored.append({k: v for k, v in tensors.items() if ".base_layer." in k})
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(value, stored[1][name]) for name, value in stored[0].items())


@pytest.mark.slow
def test_a_run_with_a_base_in_four_bits_resumes_bitwise_and_exports_plain_weights(program: Program) -> None:
    def done(*words: str) -> None:
        outcome = program.run(*words)
        assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stderr

    few = ("train.max_steps=4", "train.epochs=1", "train.checkpoint.every_steps=2", "optim.lr=1e-2")
    done("run", str(TOY), *FOUR_BITS, *few)
    run = program.only_run()
    expected = weights(run)
    done("evaluate", str(run), "--checkpoint", "last")
    done("export", str(run), "--checkpoint", "last", "--output", "policy")
    done("run", "--resume", str(run), "--checkpoint", "step-00000002")
    resumed = weights(run)
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
    assert any(value.dtype == torch.uint8 for value in expected.values())
    merged = load_file(program.folder / "policy" / "policy.safetensors")
    assert {value.dtype for value in merged.values()} == {torch.float32}
    assert not any("lora" in name or "codes" in name for name in merged)
    done("evaluate", "policy")
    files = (run / "evaluation" / "step-00000004.json", program.folder / "policy" / "evaluation.json")
    of_run, alone = (json.loads(file.read_text()) for file in files)
    for name in ("val_ind_loss", "val_ood_loss", "val_ind_loss_ct"):
        assert alone[name] == pytest.approx(of_run[name], rel=1e-2)


@pytest.mark.slow
def test_without_bitsandbytes_a_run_ends_with_one_line_before_it_begins(program: Program) -> None:
    (program.folder / "bitsandbytes.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(program.folder), ENVIRONMENT["PYTHONPATH"]])
    process = program.start("run", TOY, *FOUR_BITS, PYTHONPATH=path)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 2
    assert err == (
        "error: backbone.adapter.base: 4bit needs bitsandbytes (not here); install it: pip install 'vlatrack[scale]'\n"
    )
    assert not (program.folder / "runs").exists()


@pytest.mark.slow
def test_a_target_or_pattern_that_matches_nothing_ends_a_run_with_one_line(program: Program) -> None:
    for word in ("backbone.adapter={kind: lora, targets: [query]}", "train.freeze=[nothing.*]"):
        done = program.run("run", TOY, word)
        assert done.returncode == 2
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert "there are" in line
