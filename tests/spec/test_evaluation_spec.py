"""Evaluation files: what is refused, in one line with its place, and what makes two episode sets the same."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack.builders.simulator import build_simulator, check_tasks, known_tasks
from vlatrack.cli.main import app
from vlatrack.errors import SpecError
from vlatrack.spec.evaluation import EvaluationSpec, set_digest
from vlatrack.spec.load import is_evaluation, load_evaluation

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHIPPED = sorted((EXPERIMENTS / "evaluation").glob("*.yaml"))
METAWORLD_DIGEST = "9c1a800cc058a91706057bfc7eecddfa0ff96888e2a6a0e733b63d3c899ea57a"
"""Of the first version that had evaluations."""
METAWORLD = EXPERIMENTS / "evaluation" / "metaworld.yaml"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_a_shipped_evaluation_names_tasks_that_its_simulator_has(file: Path) -> None:
    spec = load_evaluation(file)
    assert is_evaluation(file)
    assert spec.name == file.stem
    tasks = known_tasks(spec)
    assert tasks is not None
    check_tasks(spec, tasks)


def test_an_experiment_is_no_evaluation() -> None:
    assert not is_evaluation(EXPERIMENTS / "quickstart.yaml")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("suite.tasks=[]", "suite.tasks: must have at least 1 value(s), got 0"),
        ("suite.kind=metawrld", "'custom', got 'metawrld' (did you mean 'metaworld'?)"),
        ("rotatoin=3", "rotatoin: unknown key (did you mean 'rotation'?)"),
        ("rotation=90", "rotation: expected 0 or 180, got 90"),
        ("acting.blnd=true", "acting.blnd: unknown key (did you mean 'blind'?)"),
        ("acting={ensemble: 1, replan_every: 2}", "ensemble asks for a chunk in each env step"),
        ("acting={blind: true, expert: true}", "blind and expert exclude one another"),
        ("cameras={}", "cameras: must have at least 1 value(s), got 0"),
        ("cameras={a: front, b: front}", "front is shown by two cameras of the simulator"),
        ("no_op=[0, 0]", "no_op: is the action of the waits"),
        ("suite={kind: libero, benchmark: libero_goal, tasks: [10]}", "libero_goal has 10 tasks, 0 to 9; got 10"),
        ("suite={kind: libero, benchmark: libero_gaol, tasks: [0]}", "(did you mean 'libero_goal'?)"),
        ("prompt=name", "prompt: metaworld has only the language of its tasks; leave it out"),
        ("prompt=langauge", "prompt: expected 'language' or 'name', got 'langauge'"),
        ("acting.gripper=open_vla", "(did you mean 'openvla'?)"),
        ("acting.images.crop_area=1.1", "acting.images.crop_area: must be at most 1, got 1.1"),
        ("acting.images.resize={size: 224}", "acting.images.resize.method: this key is required"),
        ("episodes=0", "episodes: must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(override: str, told: str) -> None:
    with pytest.raises(SpecError) as raised:
        load_evaluation(METAWORLD, [override])
    assert told in str(raised.value)
    assert str(raised.value).startswith(f"override '{override}'")
    assert "\n" not in str(raised.value)


def test_an_unknown_task_is_told_with_the_nearest_by_validate() -> None:
    assert CliRunner().invoke(app, ["validate", str(METAWORLD)]).output.splitlines()[-1] == "OK"
    with pytest.raises(
        SpecError, match=r"suite.tasks.0: metaworld has no task 'windw-open-v3'; did you mean 'window-o"
    ):
        CliRunner().invoke(app, ["validate", str(METAWORLD), "suite.tasks=[windw-open-v3]"], catch_exceptions=False)


def test_a_simulator_that_is_not_there_yet_is_told() -> None:
    spec = load_evaluation(METAWORLD, ["suite={kind: libero, benchmark: libero_10, tasks: [0, 1]}"])
    with pytest.raises(SpecError, match="no simulator for libero_10 in this version"):
        build_simulator(spec)


def test_the_digest_is_that_of_the_episodes_and_of_what_simulates_them() -> None:
    def digest(*overrides: str, mujoco: str = "3.3.0") -> str:
        spec: EvaluationSpec = load_evaluation(METAWORLD, overrides)
        return set_digest(spec.set_settings(), {"mujoco": mujoco})

    assert digest() == digest("name=other", "acting.blind=true", "acting.replan_every=2", "waits=0")
    others = [
        digest(text) for text in ("first_seed=1", "episodes=21", "max_steps=299", "resolution=64", "rotation=180")
    ]
    assert len({digest(), digest(mujoco="3.3.1"), *others}) == 7


def test_settings_that_came_later_leave_digest_and_folders_of_before_as_they_were() -> None:
    spec = load_evaluation(METAWORLD)
    versions = {"metaworld": "3.1.1", "mujoco": "3.3.0", "gymnasium": "1.2.0"}
    assert set_digest(spec.set_settings(), versions) == METAWORLD_DIGEST
    assert list(spec.acting.settings()) == ["route", "replan_every", "ensemble", "history", "blind", "expert"]
    suite = "suite={kind: libero, benchmark: libero_10, tasks: [0]}"
    others = load_evaluation(METAWORLD, [suite, "prompt=name", "acting.gripper=sign", "acting.images.jpeg=true"])
    assert others.set_settings()["prompt"] == "name"
    assert others.acting.settings()["gripper"] == "sign"
    assert others.acting.settings()["images"] == {"jpeg": True, "resize": None, "crop_area": 1.0}


def test_results_of_baseline_and_ceiling_have_names_of_their_own() -> None:
    labels = [load_evaluation(METAWORLD, words).label for words in ([], ["acting.blind=true"], ["acting.expert=true"])]
    assert labels == ["metaworld", "metaworld-blind", "metaworld-expert"]
