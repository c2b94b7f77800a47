"""The YAML files in experiments/: valid, and the LIBERO ones true to the training that they translate."""

from pathlib import Path

import pytest

from vlatrack.bench.memory import predict_training_memory
from vlatrack.cli.memory import parse_gpus, parse_memory
from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.data.formats.libero import words_of_task
from vlatrack.spec.data import LeRobotSource, LiberoSource
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import ADDED_LATER, canonical_hash
from vlatrack.spec.libero_tasks import TASKS
from vlatrack.spec.load import load_evaluation, load_spec

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
LIBERO_HORIZON = {"libero_goal": 5, "libero_object": 5, "libero_spatial": 10, "libero_10": 10}


def libero(suite: str) -> ExperimentSpec:
    return load_spec(EXPERIMENTS / f"{suite}.yaml")


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_experiment_is_valid_and_its_validation_is_held_out(file: Path) -> None:
    data = load_spec(file).data
    assert data.val_ind is not None
    assert data.val_ood is not None
    assert data.val_ood.tasks
    assert (data.train.part, data.val_ind.part) == ("all_but_last_tenth", "last_tenth")
    assert data.val_ood.tasks == data.train.exclude_tasks == data.val_ind.exclude_tasks
    assert all(not Path(path).is_absolute() for path in paths(data.train, data.val_ind, data.val_ood))


def paths(*sources: object) -> list[str]:
    return [source.path for source in sources if isinstance(source, LeRobotSource | LiberoSource)]


def test_there_is_one_experiment_a_suite_and_the_quickstart() -> None:
    assert {file.stem for file in EXPERIMENTS.glob("*.yaml")} == {"quickstart", *LIBERO_HORIZON}


@pytest.mark.parametrize("suite", LIBERO_HORIZON)
def test_libero_experiment_has_the_numbers_of_the_reference(suite: str) -> None:
    spec = libero(suite)
    head, loss, optim, train, data = spec.action_head, spec.loss, spec.optim, spec.train, spec.data
    assert (head.time_horizon, head.action_dim) == (LIBERO_HORIZON[suite], 7)
    assert (optim.lr, optim.schedule, optim.weight_decay, optim.clip_grad) == (5e-6, "constant", 0.15, 4.0)
    assert (optim.warmup_epochs, optim.betas) == (0.01, (0.9, 0.95))
    assert (loss.loss_ct_weights, loss.z_loss_weight, loss.image_token_weight) == (10, 1e-5, 0.04)
    assert (train.batch_size, train.micro_batch, train.epochs, train.precision) == (64, 8, 40, "bf16")
    assert (train.memory.parameters, train.memory.keep) == ("bf16", "none")
    assert (spec.backbone.residual_dropout, spec.backbone.max_seq_len) == (0.08, 4096)
    assert (data.history, data.use_state, set(data.samples)) == (2, True, {"vla", "world_model"})
    assert data.cameras == ("agentview_rgb", "eye_in_hand_rgb")
    assert (spec.tokenizer.bins, spec.tokenizer.image.image_size) == (256, 256)


@pytest.mark.parametrize("suite", LIBERO_HORIZON)
def test_libero_experiment_reads_its_files_as_the_reference_prepares_them(suite: str) -> None:
    data, prompt = libero(suite).data, "name" if suite == "libero_10" else "language"
    for source in (data.train, data.val_ind, data.val_ood):
        assert isinstance(source, LiberoSource)
        assert (source.images, source.order, source.prompt, source.skip_no_ops) == ("rotated", "name", prompt, True)
    recorded = data.as_recorded
    assert (recorded.rotation, recorded.prompt, recorded.gripper) == (180, prompt, "raw")
    evaluation = load_evaluation(EXPERIMENTS / "evaluation" / f"{suite}.yaml")
    assert (evaluation.rotation, evaluation.prompt, evaluation.acting.gripper) == (180, prompt, "raw")
    names = sorted(TASKS[suite])  # the last of ten tasks is held out
    assert data.train.exclude_tasks == (words_of_task(names[-1], scene=prompt == "name"),)


def test_what_is_said_of_the_recording_goes_before_what_the_source_says_itself() -> None:
    told = ("data.recorded.rotation=0", "data.recorded.waits=10")
    recorded = load_spec(EXPERIMENTS / "libero_goal.yaml", told).data.as_recorded
    assert (recorded.rotation, recorded.prompt, recorded.gripper, recorded.waits) == (0, "language", "raw", 10)


@pytest.mark.parametrize("setting", ["images", "order", "prompt"])
def test_a_setting_that_libero_sources_got_later_leaves_the_hash_of_older_experiments(setting: str) -> None:
    for split in ("train", "val_ind", "val_ood"):
        assert ADDED_LATER[f"data.{split}.{setting}"] == LiberoSource.model_fields[setting].default
    defaults = {"images": "upright", "order": "number", "prompt": "language"}
    words = [f"data.{split}.{name}={value}" for split in ("train", "val_ind") for name, value in defaults.items()]
    one = load_spec(EXPERIMENTS / "libero_goal.yaml", words)
    other = load_spec(EXPERIMENTS / "libero_goal.yaml", [*words, "data.recorded.rotation=0"])
    assert canonical_hash(one) == canonical_hash(other)
    assert canonical_hash(one) != canonical_hash(libero("libero_goal"))


def test_libero_experiments_differ_only_in_suite_and_chunk() -> None:
    own = {"name", "data", "action_head"}
    shared = [libero(suite).model_dump(exclude=own) for suite in LIBERO_HORIZON]
    assert all(each == shared[0] for each in shared)
    assert [libero(suite).data.train.path for suite in LIBERO_HORIZON] == [f"data/{suite}" for suite in LIBERO_HORIZON]


def test_quickstart_asks_for_tasks_and_cameras_that_the_shipped_dataset_has() -> None:
    data = load_spec(EXPERIMENTS / "quickstart.yaml").data
    assert isinstance(data.train, LeRobotSource)
    source = LeRobotDataset(ROOT / data.train.path)
    assert set(data.cameras) <= set(source.cameras)
    assert data.val_ood is not None
    assert set(data.val_ood.tasks or ()) < {episode.task for episode in source.episodes()}


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "gpus", "limit"), [("libero_goal", "1", "80GB"), ("libero_10", "8", "24GB")])
def test_libero_experiment_fits_the_gpus_that_it_names(
    suite: str, gpus: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no checkpoint
    file = EXPERIMENTS / f"{suite}.yaml"
    assert limit.replace("GB", " GB") in file.read_text()
    memory = predict_training_memory(load_spec(file), parse_gpus(gpus))
    assert memory.on_gpu <= parse_memory(limit)
