"""Evaluation files: what is refused, in one line with its place, and what makes two episode sets the same."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlatrack.builders.evaluation import plan_episodes
from vlatrack.builders.simulator import check_tasks, known_tasks
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
        ("suite={kind: libero, benchmark: libero_goal, tasks: [10]}", "there are 10 tasks, 0 to 9; got 10"),
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


def test_tasks_of_libero_are_given_by_name_by_number_or_all_at_once() -> None:
    suite = "suite={kind: libero, benchmark: libero_goal, tasks: %s}"
    numbered = load_evaluation(METAWORLD, [suite % "[6, turn_on_the_stove]"]).suite.tasks
    assert numbered == ("put_the_cream_cheese_in_the_bowl", "turn_on_the_stove")
    every = load_evaluation(METAWORLD, [suite % "all"]).suite.tasks
    assert len(every) == 10
    assert every[6] == numbered[0]


def test_an_unknown_task_of_libero_is_told_with_the_nearest() -> None:
    spec = load_evaluation(
        METAWORLD, ["suite={kind: libero, benchmark: libero_goal, tasks: [put_the_bowl_on_the_plates]}"]
    )
    known = known_tasks(spec)
    assert known is not None
    with pytest.raises(SpecError, match=r"suite.tasks.0: libero_goal has no task .* 'put_the_bowl_on_the_plate'\?"):
        check_tasks(spec, known)


def test_there_are_no_more_episodes_than_stored_initial_states() -> None:
    suite = "suite={kind: libero, benchmark: libero_goal, tasks: all%s}"
    with pytest.raises(SpecError, match="episodes: 51 of each task, but LIBERO stores 50 initial states"):
        load_evaluation(METAWORLD, [suite % "", "episodes=51"])
    load_evaluation(METAWORLD, [suite % ", initial_states: sampled", "episodes=51"])


def test_episodes_in_stored_states_share_a_seed_and_sampled_ones_have_their_own() -> None:
    suite = "suite={kind: libero, benchmark: libero_goal, tasks: [0]%s}"
    stored = load_evaluation(METAWORLD, [suite % "", "episodes=2", "first_seed=7"])
    assert [(e.begin.seed, e.begin.initial_state) for e in plan_episodes(stored)] == [(7, 0), (7, 1)]
    sampled = load_evaluation(METAWORLD, [suite % ", initial_states: sampled", "episodes=2", "first_seed=7"])
    assert [(e.begin.seed, e.begin.initial_state) for e in plan_episodes(sampled)] == [(7, None), (8, None)]


@pytest.mark.parametrize(
    ("benchmark", "tasks", "steps"),
    [
        ("libero_spatial", 10, 220),
        ("libero_object", 10, 280),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
    ],
)
def test_the_libero_recipes_have_the_numbers_of_the_reference(benchmark: str, tasks: int, steps: int) -> None:
    spec = load_evaluation(METAWORLD.with_name(f"{benchmark}.yaml"), [])
    assert (spec.name, len(spec.suite.tasks), spec.episodes, spec.first_seed) == (benchmark, tasks, 50, 0)
    assert (spec.max_steps, spec.waits, spec.no_op) == (steps, 10, (0, 0, 0, 0, 0, 0, -1))
    assert (spec.resolution, spec.rotation, spec.acting.replan_every) == (256, 180, None)


def test_the_recipes_of_other_harnesses_differ_in_how_the_policy_sees_and_acts() -> None:
    openpi = load_evaluation(METAWORLD.with_name("libero_openpi.yaml"), [])
    oft = load_evaluation(METAWORLD.with_name("libero_openvla_oft.yaml"), [])
    assert (openpi.first_seed, openpi.acting.replan_every, openpi.acting.gripper) == (7, 5, "raw")
    assert openpi.acting.images.model_dump() == {
        "jpeg": False,
        "resize": {"size": 224, "method": "pad"},
        "crop_area": 1.0,
    }
    assert (oft.first_seed, oft.acting.replan_every, oft.acting.gripper) == (0, 8, "openvla")
    assert oft.acting.images.model_dump() == {
        "jpeg": True,
        "resize": {"size": 224, "method": "lanczos3"},
        "crop_area": 0.9,
    }
    assert (openpi.max_steps, oft.max_steps, openpi.waits, oft.waits) == (220, 220, 10, 10)


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
