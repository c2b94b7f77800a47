"""The model card of an exported policy tells where the policy comes from, and nothing that is not for strangers."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from program import TOY

import vlatrack
from vlatrack import Policy
from vlatrack.errors import DataError
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.hub import published_files
from vlatrack.spec.publish import publishable, without_places
from vlatrack.training.checkpoint.manifest import check_files, read_manifest

SHORT = ("train.max_steps=2", "data.val_ood=null", "evaluate.open_loop.max_samples=8", "tracking.log_every=1")
EPISODES = "task,initial_state,seed,outcome\npush,0,0,success\npush,1,0,failure\npull,0,0,success\npull,1,0,error\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return vlatrack.train(vlatrack.load_spec(TOY, SHORT), runs=tmp_path_factory.mktemp("card") / "runs")


@pytest.fixture(scope="module")
def policy(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "toy-policy"
    (folder.parent / "episodes.csv").write_text(EPISODES)
    vlatrack.export(run.path, folder, episodes=[folder.parent / "episodes.csv"])
    return folder


@pytest.fixture(scope="module")
def card(policy: Path) -> str:
    return (policy / "README.md").read_text()


def test_the_hub_reads_its_front_matter(card: str) -> None:
    _, front, _ = card.split("---\n", 2)
    told = yaml.safe_load(front)
    assert (told["library_name"], told["pipeline_tag"]) == ("vlatrack", "robotics")
    assert {"vision-language-action", "chameleon"} <= set(told["tags"])


def test_it_has_digests_data_interface_and_spec(card: str, run: RunDirectory, policy: Path) -> None:
    manifest = json.loads(run.manifest_file.read_text())
    assert read_manifest(policy).policy_sha256 in card
    for split in ("train", "val_ind"):
        told = manifest["data"][split]
        assert f"| {split} | toy | {len(told['episodes'])} | {told['steps']} | `{told['sha256']}` |" in card
    assert "| cameras | `front` |" in card
    assert "| state | 2 numbers |" in card
    assert "| answer | 3 actions of 2 numbers |" in card
    assert f"trained as `toy/{run.run_id}@step-00000002`" in card
    (spec,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    assert yaml.safe_load(spec)["optim"]["lr"] == run.spec().optim.lr


def test_its_python_loads_the_policy(card: str, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(policy.parent)
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    importing, loading, _ = lines.splitlines()
    names: dict[str, object] = {}
    exec(f"{importing}\n{loading}", names)
    assert isinstance(names["policy"], Policy)


def test_its_metrics_are_those_of_the_checkpoint_s_step(card: str, run: RunDirectory) -> None:
    records = [json.loads(line) for line in run.journal.read_text().splitlines()]
    logged = [record for record in records if record["kind"] == "metrics" and record["step"] == 2]
    values = {name: value for record in logged for name, value in record["data"].items()}
    for name in ("closs", "loss_ct", "l1_loss_action_7", "l1_loss_head_9"):
        assert f"| `{name}` | {values[f'train_{name}']:.4g} | {values[f'val_ind_{name}']:.4g} | " in card


def test_its_success_rates_have_intervals_and_errors_apart(card: str) -> None:
    assert "| episodes.csv | all | 4 | 2 | 1 | 66.7% | 20.8% to 93.9% |" in card
    assert "| episodes.csv | pull | 2 | 1 | 1 | 100.0% | 20.7% to 100.0% |" in card


def test_it_may_be_edited(policy: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(policy, tmp_path / "copy")
    (copy / "README.md").write_text("Mine.")
    assert Policy.load(copy, device="cpu").sha256 == Policy.load(policy, device="cpu").sha256


def test_neither_card_nor_upload_names_a_place_of_this_machine(
    run: RunDirectory, policy: Path, card: str, tmp_path: Path
) -> None:
    child_spec = vlatrack.load_spec(
        TOY, [*SHORT, f"init_from={policy}", "evaluate.open_loop=null", "tracking.backends=[{kind: mlflow}]"]
    )
    assert str(policy) in publishable_paths(child_spec.model_dump_json())
    assert publishable(child_spec).init_from == policy.name
    assert [backend.kind for backend in publishable(child_spec).tracking.backends] == ["mlflow"]
    folder = shutil.copytree(policy, tmp_path / "copy")
    described = json.loads((folder / "policy.json").read_text())
    described["lineage"] = [{"checkpoint": str(run.path / "checkpoints" / "step-00000002"), "policy_sha256": "ab" * 32}]
    (folder / "policy.json").write_text(json.dumps(described))
    uploaded = {n: c if isinstance(c, bytes) else c.read_bytes() for n, c in published_files(folder).items()}
    texts = [content.decode() for name, content in uploaded.items() if not name.endswith(".safetensors")]
    assert not any(str(tmp_path.parent) in text for text in [card, *texts])
    assert json.loads(uploaded["policy.json"])["lineage"][0]["checkpoint"] == f"toy/{run.run_id}@step-00000002"
    for name, content in uploaded.items():
        place = tmp_path / "uploaded" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    uploaded_manifest = read_manifest(tmp_path / "uploaded")
    check_files(tmp_path / "uploaded", uploaded_manifest)
    assert uploaded_manifest.policy_sha256 == read_manifest(policy).policy_sha256


def publishable_paths(text: str) -> list[str]:
    return re.findall(r"\"(/[^\"]+)\"", text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/srv/me/data/goal", "goal"),
        ("~/data/my demos", "my demos"),
        ("file:///srv/me/x", "x"),
        ("/srv/me/runs/goal/r@best", "r@best"),
        ("from /srv/me/x to 'b'", "from x to 'b'"),
        ("data/goal", "data/goal"),
        ("put the red/blue block down", "put the red/blue block down"),
        ("https://host/a/b", "https://host/a/b"),
        ("package.module:Class", "package.module:Class"),
    ],
)
def test_of_an_absolute_path_the_last_part_is_left(text: str, left: str) -> None:
    assert without_places(text) == left


def test_episodes_that_cannot_be_read_leave_no_folder(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        vlatrack.export(run.path, tmp_path / "policy", episodes=[tmp_path / "none.csv"])
    assert list(tmp_path.iterdir()) == []
