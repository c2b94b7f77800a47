"""The study in experiments/libero_scripted: its arms are valid, and what is blind sees nothing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vlatrack.data.formats.lerobot.dataset import LeRobotDataset
from vlatrack.evaluation.intervals import newcombe_paired
from vlatrack.spec.load import load_evaluation, load_spec

STUDY = Path(__file__).parents[2] / "experiments" / "libero_scripted"
SHIPPED = STUDY.parent / "data" / "metaworld-mini"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"libero_scripted_{name}", STUDY / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # where dataclasses look for it
    spec.loader.exec_module(made)
    return made


study = module("study")


def test_every_arm_is_trained_and_evaluated_by_valid_files() -> None:
    assert {arm.training for arm in study.ARMS} == set(study.TRAININGS)
    for overrides in study.TRAININGS.values():
        spec = load_spec(STUDY / "policy.yaml", overrides)
        assert spec.data.recorded.rotation == 180
    for arm in study.ARMS:
        evaluation = load_evaluation(STUDY / "evaluation.yaml", arm.acting)
        assert evaluation.suite.initial_states == "stored"
        assert evaluation.suite.tasks == tuple(study.TASKS)
        assert set(evaluation.cameras.values()) == set(spec.data.cameras)


def test_what_is_not_seeing_in_training_is_not_seeing_in_the_evaluation() -> None:
    for arm in study.ARMS:
        trained_blind = any("BlackDataset" in override for override in study.TRAININGS[arm.training])
        assert trained_blind == load_evaluation(STUDY / "evaluation.yaml", arm.acting).acting.blind


def test_black_demonstrations_differ_from_others_in_their_images_alone() -> None:
    black, seen = module("black").BlackDataset(SHIPPED), LeRobotDataset(SHIPPED)
    episode, other = black.episodes()[0], seen.episodes()[0]
    frames = black.frames(episode, black.cameras[0])
    assert frames.shape == seen.frames(other, seen.cameras[0]).shape
    assert frames.max() == 0
    assert (episode.actions == other.actions).all()
    assert black.fingerprint() != seen.fingerprint()


def test_answers_are_those_of_the_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    succeeds = {"seeing": 4, "tokens": 2, "blind": 0, "world-model": 4}  # of ten initial states
    for arm in study.ARMS:
        for seed in (0, 1):
            rows = [
                f"{task},{state},{seed},{'success' if state < succeeds[arm.name] else 'failure'},90"
                for task in study.TASKS
                for state in range(10)
            ]
            arm.table(seed).write_text("\n".join([",".join(study.COLUMNS), *rows]) + "\n")
    report = "\n".join(study._report())
    assert "| seeing | 2 | 8/20 [21.9, 61.3] | 8/20 [21.9, 61.3] | 8/20 [21.9, 61.3] | 40.0 % [28.6, 52.6] |" in report
    assert "| seeing | 1 | 4/10 | 4/10 | 4/10 | 12/30 |" in report
    low, high = newcombe_paired(both=0, only_a=24, only_b=0, neither=36)
    difference = f"+40.0 [{100 * low:+.1f}, {100 * high:+.1f}] of 60 pairs"
    assert f"| seeing - blind | {difference} | 24, 0 | {3 * 2 * 0.5**24:.2g} | +40.0, +40.0 |" in report
    assert "| world-model - seeing | +0.0 [" in report
