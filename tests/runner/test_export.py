"""A policy as a folder of its own."""

import json
import shutil
from pathlib import Path

import pytest
from program import TOY, Program
from typer.testing import CliRunner

from vlatrack.builders.policy import StoredPolicy, build_policy
from vlatrack.cli.main import app
from vlatrack.errors import CheckpointError, SpecError, VlatrackError
from vlatrack.runner.evaluate import evaluate_run
from vlatrack.runner.export import export_policy
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.tokens.images import ImageTokenizer
from vlatrack.training.checkpoint.contents import load_weights, read_counters
from vlatrack.training.checkpoint.manifest import read_manifest


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = load_spec(TOY, ["train.max_steps=2", "evaluate.open_loop=null"])
    return run_experiment(spec, runs=tmp_path_factory.mktemp("export") / "runs").path


def test_an_exported_policy_needs_nothing_of_its_run_and_keeps_its_digest(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "runs" / "toy" / run.name)
    checkpoint = next((moved / "checkpoints").glob("step-*"))
    digest = read_manifest(checkpoint).policy_sha256
    assert (checkpoint / "training" / "states.safetensors").is_file()
    assert export_policy(moved, tmp_path / "policy", checkpoint="last") == digest
    shutil.rmtree(tmp_path / "runs")
    assert {path.name for path in (tmp_path / "policy").iterdir()} == {
        *("files.json", "image_tokenizer", "policy.json", "policy.safetensors", "spec.yaml", "text_tokenizer"),
        *("MLmodel", "README.md", "requirements.txt"),
    }
    stored = StoredPolicy.open(tmp_path / "policy", {})
    policy = build_policy(stored.spec, stored.source(stored.spec))
    load_weights(tmp_path / "policy", policy)
    ImageTokenizer.load(stored.record.image_tokenizer)
    assert stored.record.policy_sha256 == digest
    assert stored.record.norm_stats.actions.dimensions == 2
    with pytest.raises(CheckpointError, match="an exported policy; a training resumes from its run only"):
        read_counters(tmp_path / "policy")


def test_a_folder_that_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is there already; choose another folder"):
        export_policy(run, tmp_path)


@pytest.mark.slow
def test_export_from_the_command_line_names_the_policy(program: Program, run: Path) -> None:
    done = program.run("export", run, "policy")
    assert done.returncode == 0, done.stderr
    digest = json.loads((program.folder / "policy" / "files.json").read_text())["policy_sha256"]
    assert done.stdout == f"wrote policy: policy {digest[:12]}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["policy"], "give the FOLDER to write, or --push"),
        (["policy", "a", "-o", "b"], "the folder is given twice"),
        (["policy", "--log", "--push", "a/b"], "--log: is for a new export; give its FOLDER"),
        (["policy", "a", "--private"], "--private: is for --push"),
    ],
)
def test_an_export_without_its_place_is_one_line(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(app, ["export", *arguments])
    assert isinstance(result.exception, SpecError)
    assert told in str(result.exception)


@pytest.fixture(scope="module")
def policy(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "policy"
    export_policy(run, folder)
    return folder


def test_an_exported_policy_is_evaluated_as_in_its_run_and_keeps_the_numbers(
    run: Path, policy: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    in_the_run, alone = evaluate_run(checkpoint, overrides=["data.val_ood=null"]), evaluate_run(policy)
    assert in_the_run.file == run / "evaluation" / "step-00000002.json"
    of_both = {name: value for name, value in alone.metrics.items() if name.startswith("val_ind_")}
    assert in_the_run.metrics == of_both
    assert "val_ood_closs" in alone.metrics
    stored = json.loads((policy / "evaluation.json").read_text())
    assert stored["policy_sha256"] == read_manifest(checkpoint).policy_sha256
    assert stored["fingerprints"]["data.val_ind"] == in_the_run.data["data.val_ind"]
    assert stored["calibration"].keys() == {"val_ind", "val_ood"}
    assert sum(row["tokens"] for row in stored["calibration"]["val_ind"]) > 0
    assert (policy / "evaluation-calibration.png").is_file()
    assert list((tmp_path / "cache" / "vlatrack" / "data" / "codes").iterdir())
    records = [json.loads(line)["data"] for line in (run / "journal.jsonl").read_text().splitlines()]
    (event,) = [record["data"] for record in records if record.get("name") == "evaluation"]
    assert "data.val_ood.kind: custom -> null" in event["changes"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"overrides": ["tokenizer.bins=16"]}, r"an evaluation cannot change tokenizer\.bins: 32 -> 16; it can"),
        (
            {"overrides": ["data.val_ind=null", "data.val_ood=null"]},
            "its experiment has no validation data with episodes; name",
        ),
        ({"checkpoint": "last"}, "is a checkpoint itself; leave out last"),
        ({"overrides": ["data.val_ind.tasks=[planted-0123456789]"]}, "holds the value of WANDB_API_KEY and is sent to"),
    ],
    ids=["bins", "no data", "checkpoint", "key"],
)
def test_what_cannot_be_evaluated_is_one_line(policy: Path, monkeypatch, arguments: dict, told: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-0123456789")
    with pytest.raises(VlatrackError, match=told) as caught:
        evaluate_run(policy, **arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_a_policy_is_no_run_to_resume(policy: Path) -> None:
    with pytest.raises(
        SpecError, match=r"a checkpoint or an exported policy, not a run; init_from=.* starts a new run"
    ):
        resume_run(policy)


@pytest.mark.slow
def test_a_new_run_may_start_from_an_exported_policy(policy: Path, tmp_path: Path) -> None:
    spec = load_spec(TOY, ["train.max_steps=1", "evaluate.open_loop=null", f"init_from={policy}"])
    child = run_experiment(spec, runs=tmp_path / "runs")
    (origin,) = json.loads(child.manifest_file.read_text())["lineage"]
    assert origin["policy_sha256"] == read_manifest(policy).policy_sha256
