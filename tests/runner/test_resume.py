"""What a run may go on with, what makes another experiment of it, and how a new run starts from its weights."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import toy_source
from program import TOY, finish_of

from vlatrack.errors import CheckpointError, SpecError
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.run import resume_run, run_experiment
from vlatrack.spec.load import load_spec
from vlatrack.training.callback import Callback
from vlatrack.training.checkpoint.manifest import read_manifest, write_manifest

QUICK = (
    "train.max_steps=4",
    "train.checkpoint.every_steps=2",
    "train.checkpoint.keep_last=9",
    "evaluate.open_loop=null",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, with checkpoints after two and four."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    return run_experiment(load_spec(TOY, QUICK), runs=runs, overrides=QUICK).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to go on with."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "toy" / trained.name))


class Said(Callback):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notices: list[str] = []
        self.steps: list[int] = []

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)

    def on_notice(self, text: str) -> None:
        self.notices.append(text)

    def on_step(self, state) -> None:
        self.steps.append(state.step)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lr=0.1", "optim.lr: 0.002 -> 0.1"),
        ("seed=4", "seed: 3 -> 4"),
        ("train.batch_size=8", "train.batch_size: 16 -> 8"),
        ("tokenizer.bins=16", "tokenizer.bins: 32 -> 16"),
        ("data.sample_every=2", "data.sample_every: 1 -> 2"),
        ("name=other", "name: toy -> other"),
        ("init_from=runs/other", "init_from: null -> runs/other"),
    ],
)
def test_a_setting_that_decides_the_result_is_named_and_nothing_is_touched(run: Path, override: str, told: str) -> None:
    before = (run / "journal.jsonl").read_bytes()
    with pytest.raises(SpecError) as caught:
        resume_run(run, checkpoint="step-00000002", overrides=[override, "train.micro_batch=null"])
    assert f"({told})" in str(caught.value)
    assert f"init_from={run}@step-00000002" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert (run / "journal.jsonl").read_bytes() == before


def test_a_spec_that_was_edited_in_the_run_directory_is_noticed(run: Path) -> None:
    spec = run / "spec.yaml"
    spec.write_text(spec.read_text().replace("lr: 0.002", "lr: 0.2"))
    with pytest.raises(SpecError, match=r"optim\.lr: 0\.002 -> 0\.2"):
        resume_run(run, checkpoint="step-00000002")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"shift": 0.4}, "data.train is not what it was; data.train (episodes in their order) is not what it was"),
        ({"reverse": True}, "data.train (episodes in their order) is not what it was"),
    ],
    ids=["other actions", "other order"],
)
def test_data_that_has_changed_is_named(run: Path, monkeypatch, options: dict, told: str) -> None:
    """As if the files behind the same path had changed."""
    monkeypatch.setattr(toy_source, "ToySource", partial(toy_source.ToySource, **options))
    with pytest.raises(SpecError) as caught:
        resume_run(run, checkpoint="step-00000002")
    assert told in str(caught.value)


@pytest.mark.slow
def test_what_does_not_decide_the_result_may_change_and_is_recorded(run: Path) -> None:
    changes = ["tracking.log_every=1", "train.micro_batch=4", "train.workers=0", "train.max_steps=6"]
    resume_run(run, overrides=changes)
    assert finish_of(run)["status"] == "FINISHED"
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (event,) = [r["data"]["data"] for r in records if r["kind"] == "event" and r["data"]["name"] == "resume"]
    assert event["changes"] == "train.max_steps: 4 -> 6; train.micro_batch: 8 -> 4; tracking.log_every: 4 -> 1"
    assert RunDirectory.open(run).spec().train.max_steps == 6
    first, second = [r["data"] for r in records if r["kind"] == "start"]
    assert [start["params"]["train.max_steps"] for start in (first, second)] == [4, 6]
    assert second["name"] == first["name"], "it is the same run"
    assert second["tags"]["vlatrack.overrides"] == " ".join([*QUICK, *changes])


def test_a_finished_run_says_that_nothing_is_left_to_train(run: Path) -> None:
    said = Said()
    resume_run(run, callbacks=[said])
    assert said.warnings == [
        f"nothing left to train: {run} is done after 4 steps · extend it: vlatrack run --resume {run} train.max_steps=8"
    ]
    assert said.steps == []


@pytest.mark.slow
def test_more_epochs_extend_a_finished_run_as_if_they_had_been_asked_for(run: Path) -> None:
    said = Said()
    resume_run(run, overrides=["train.max_steps=8", "train.epochs=6"], callbacks=[said])
    assert said.steps == [5, 6, 7, 8]
    assert said.warnings[0] == (
        "train.epochs = 6 spans the cosine anew, which spanned 3: "
        "the learning rate goes on at 0.00199 instead of 0.00196"
    )


def test_the_latest_run_is_the_one_that_was_started_last(run: Path) -> None:
    for name in ("20990101-000000-aaaa", "import-0123456789abcdef"):
        shutil.copytree(run, run.parent.parent / "other" / name)
    assert RunDirectory.latest(run.parents[1]).path.name == "20990101-000000-aaaa"
    with pytest.raises(SpecError, match="no run in it yet; start one with vlatrack run"):
        RunDirectory.latest(run / "checkpoints")


def test_a_new_run_starts_from_the_weights_of_another_and_keeps_the_lineage(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.move(run.parents[1], tmp_path / "a@b"), *run.parts[-2:])
    spec = load_spec(TOY, [*QUICK, f"init_from={run}@step-00000002", "optim.lr=1e-9", "optim.schedule=constant"])
    said = Said()
    child = run_experiment(spec, runs=tmp_path / "children", callbacks=[said]).path
    assert said.notices[0].startswith("what the tokens cost, mean L1"), "at the start of each run"
    parent = run / "checkpoints" / "step-00000002"
    weights = [(folder / "policy.safetensors").read_bytes() for folder in (parent, child / "checkpoints/step-00000002")]
    assert len(weights[0]) == len(weights[1])
    (origin,) = json.loads((child / "manifest.json").read_text())["lineage"]
    assert origin == {"checkpoint": str(parent), "policy_sha256": read_manifest(parent).policy_sha256}
    start = json.loads((child / "journal.jsonl").read_text().splitlines()[0])["data"]
    assert start["tags"]["vlatrack.init_from"] == origin["policy_sha256"][:12]
    tokenizer = Path("image_tokenizer/image_tokenizer.safetensors")
    assert (child / "checkpoints/step-00000004" / tokenizer).read_bytes() == (parent / tokenizer).read_bytes()
    grandchild = run_experiment(
        load_spec(TOY, [*QUICK, f"init_from={child}"]), runs=tmp_path / "grandchildren"
    )  # the last checkpoint
    lineage = json.loads(grandchild.manifest_file.read_text())["lineage"]
    assert [Path(step["checkpoint"]).parents[1].name for step in lineage] == [run.name, child.name]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("backbone.preset=small", "of another geometry than this experiment (backbone.preset: tiny -> small)"),
        ("action_head.time_horizon=5", "of another geometry than this experiment (size mismatch"),
    ],
)
def test_weights_of_another_geometry_are_refused_in_one_line(run: Path, tmp_path, override: str, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        run_experiment(load_spec(TOY, [f"init_from={run}", override]), runs=tmp_path / "new")
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_run_that_max_steps_ended_inside_an_epoch_completes_it_when_it_is_extended(run: Path, tmp_path: Path) -> None:
    resume_run(run, overrides=["train.max_steps=15"])
    whole = run_experiment(load_spec(TOY, [*QUICK, "train.max_steps=15"]), runs=tmp_path / "whole").path
    last = Path("checkpoints", "step-00000015", "policy.safetensors")
    assert (run / last).read_bytes() == (whole / last).read_bytes()
    assert (run / "log_train.txt").read_text() == (whole / "log_train.txt").read_text()


def test_a_shorter_training_than_the_checkpoint_has_behind_it_is_refused(run: Path) -> None:
    with pytest.raises(
        SpecError, match=r"train\.max_steps = 3 is below the 4 steps of step-00000004; raise it, or go on"
    ):
        resume_run(run, overrides=["train.max_steps=3"])


@pytest.mark.slow
def test_the_spec_of_a_run_is_that_of_its_last_resume_and_the_last_window_is_logged(run: Path) -> None:
    for steps in (3, 4):
        overrides = [f"train.max_steps={steps}", "tracking.log_every=2"]
        resume_run(run, checkpoint="step-00000002", overrides=overrides)
        assert RunDirectory.open(run).spec().train.max_steps == steps
        records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        assert [r["step"] for r in records if r["kind"] == "metrics"][-1] == steps


@pytest.mark.slow
def test_a_best_checkpoint_that_was_deleted_since_is_not_the_best_of_a_resumed_run(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000002"
    state = json.loads((checkpoint / "state.json").read_text())
    state["counters"] |= {"best_step": 1, "best_value": 0.0, "best_metric": "val_ind_loss_ct"}
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_manifest(checkpoint)
    resume_run(run, checkpoint="step-00000002", overrides=["train.max_steps=3"])
    assert RunDirectory.open(run).checkpoints.find("best").name == "step-00000003"
