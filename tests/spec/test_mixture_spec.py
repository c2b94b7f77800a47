"""Mixtures and mappings in an experiment's YAML."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from vlatrack.builders.data import open_splits
from vlatrack.data.mixture import MixtureSource
from vlatrack.data.store.token_store import TokenStore
from vlatrack.data.vectors import GRIPPER_CONVENTIONS
from vlatrack.errors import DataError, SpecError
from vlatrack.spec.identity import canonical_hash, differences, flatten
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.spec.mapping import Convention

MINI = "experiments/data/metaworld-mini"
YAML = f"""\
name: demo
backbone: {{init: scratch, preset: tiny}}
action_head: {{action_dim: 4}}
data:
  cameras: [third_person]
  train:
    kind: mixture
    sources:
      - &mini
        kind: lerobot
        path: {MINI}
        weight: 2
        tasks: [close the window, open the window]
        part: all_but_last_tenth
        cap: 3
        actions: {{dimensions: [dy, dx, {{constant: 0.5}}, gripper], scale: {{dx: -1, 1: 100}}}}
        states: {{dimensions: [0, 1]}}
        cameras: {{observation.images.corner4: third_person}}
      - <<: *mini
        weight: 0.5
        actions: {{dimensions: [1, 0, 2, 3], gripper: {{dimension: [3], convention: raw, to: {{open: 0, closed: 1}}}}}}
        cap: null
  val_ind: {{<<: *mini, weight: null, part: last_tenth}}
"""

BAD = {
    "a weight is missing": (
        "        weight: 0.5\n",
        "        weight: null\n",
        "8  data.train.sources: source 1 has no weight, others have; give all sources a weight, or none",
    ),
    "a weight without a mixture": (
        "weight: null",
        "weight: 3",
        "23  data.val_ind: weight is a share in kind: mixture; leave it out",
    ),
    "a selection of the whole": (
        "    kind: mixture\n",
        "    kind: mixture\n    tasks: [open it]\n",
        "8  data.train.tasks: this key goes with another kind (known here: kind, sources, epoch_samples)",
    ),
    "no dataset": ("    sources:\n", "    sources: []\n    others:\n", "8  data.train.sources: must have at least 1"),
    "a mixture in a mixture": (
        "kind: lerobot",
        "kind: mixture",
        "10  data.train.sources.0.kind: expected 'lerobot', 'libero_hdf5'",
    ),
    "an unknown convention": (
        "convention: raw",
        "convention: rwa",
        "21  data.train.sources.1.actions.gripper.convention: expected 'raw', 'openvla', 'closed_1' or 'percent' or a "
        "mapping of keys, got 'rwa' (did you mean 'raw'?)",
    ),
    "a gripper that stays": (
        "to: {open: 0, closed: 1}",
        "to: raw",
        "21  data.train.sources.1.actions.gripper: convention and to are the same; leave the gripper out",
    ),
    "a gripper that is always open": (
        "{open: 0, closed: 1}",
        "{open: 1, closed: 1}",
        "21  data.train.sources.1.actions.gripper.to: open and closed are both 1; a gripper's numbers differ",
    ),
    "a factor of 0": (
        "dx: -1",
        "dx: 0",
        "16  data.train.sources.0.actions.scale: dx: 0 would make a constant of it; say {constant: 0} among dimensions",
    ),
    "a constant that is none": (
        "constant: 0.5",
        "constant: half",
        "16  data.train.sources.0.actions.dimensions.2.constant: expected a number, got 'half'",
    ),
    "one name for two cameras": (
        "{observation.images.corner4: third_person}",
        "{a: third_person, b: third_person}",
        "18  data.train.sources.0.cameras: two cameras would be called 'third_person'",
    ),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "exp.yaml"
    path.write_text(YAML)
    return path


def test_sources_are_selected_mapped_and_mixed_as_the_file_says(file: Path) -> None:
    splits = open_splits(load_spec(file, ["data.train.epoch_samples=100"]), TokenStore(file.parent / "store"))
    train = splits["train"]
    assert isinstance(train.source, MixtureSource)
    assert (train.source.weights, train.source.cameras) == ((2, 0.5), ("third_person",))
    assert (train.source.action_dim, train.source.state_dim) == (4, 2)
    first, second = ([e for e in train.episodes if train.source.part_of(e.index) == part] for part in (0, 1))
    assert (len(first), len(second)) == (3, 22)
    own = second[0]
    same = next(e for e in train.source.episodes() if e.index == own.index - train.source.parts[0].source.episode_count)
    assert same.task == own.task
    # One has 100 dy, -dx and g where the other has dy, dx and (g + 1) / 2.
    assert same.actions[:, 0] == pytest.approx(100 * own.actions[:, 0])
    assert same.actions[:, 1] == pytest.approx(-own.actions[:, 1])
    assert (same.actions[:, 2] == 0.5).all()
    assert same.actions[:, 3] == pytest.approx(2 * own.actions[:, 3] - 1, abs=1e-6)
    assert np.array_equal(same.states, own.states)
    assert {episode.task for episode in splits["val_ind"].episodes} == {"close the window", "open the window"}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_line_with_place_and_remedy(file: Path, case: str) -> None:
    before, after, message = BAD[case]
    assert before in YAML
    file.write_text(YAML.replace(before, after, 1))
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    assert str(caught.value).splitlines()[0].startswith(f"{file}:{message}")


def test_samples_of_an_epoch_need_weights(file: Path) -> None:
    file.write_text(YAML.replace("weight: 2", "weight: null").replace("weight: 0.5", "weight: null"))
    assert load_spec(file).data.train.sources[0].weight is None
    with pytest.raises(SpecError, match="epoch_samples goes with weights; give each source a weight"):
        load_spec(file, ["data.train.epoch_samples=100"])


def test_a_dimension_that_a_dataset_does_not_have_is_named_with_its_path(file: Path) -> None:
    spec = load_spec(file, ["data.train.sources.0.actions.dimensions=[dx, dz2, dy, gripper]"])
    with pytest.raises(
        DataError, match=f"^{MINI}: actions: no dimension 'dz2'.*there are 0 to 3: dx, dy, dz, gripper$"
    ):
        open_splits(spec, TokenStore(file.parent / "store"))


def test_a_mixture_goes_through_yaml_unharmed_and_its_paths_do_not_decide(file: Path) -> None:
    spec = load_spec(file)
    again = file.with_name("again.yaml")
    again.write_text(dump_spec(spec))
    assert load_spec(again) == spec
    moved = load_spec(file, ["data.train.sources.1.path=elsewhere"])
    assert canonical_hash(moved) == canonical_hash(spec)
    for changed in ("weight=3", "cap=4", "tasks=[close the window]", "actions.scale={0: 2}", "states=null"):
        assert canonical_hash(load_spec(file, [f"data.train.sources.1.{changed}"])) != canonical_hash(spec), changed


def test_the_hash_of_an_experiment_without_mixture_and_mapping_stays() -> None:
    assert canonical_hash(load_spec("experiments/quickstart.yaml")).startswith("50ad99b5330a")


def test_what_was_added_to_datasets_later_is_no_difference_in_a_mixture(file: Path) -> None:
    settings = flatten(load_spec(file))
    earlier = {path: value for path, value in settings.items() if not path.endswith("sources.1.cap")}
    assert len(earlier) == len(settings) - 1
    assert differences(earlier, settings) == []


def test_the_conventions_of_the_yaml_are_those_that_exist() -> None:
    assert set(get_args(Convention)) == set(GRIPPER_CONVENTIONS)
