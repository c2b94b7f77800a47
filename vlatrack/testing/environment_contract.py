"""The contract of `vlatrack.envs.base.Environment` as tests that any simulator can run against itself.

Subclass `EnvironmentContract` as a class `Test…` in a test file, say how your environment is made, and run pytest.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.base import Environment, Observation, ScriptedExpert, SkipsImages


class EnvironmentContract(ABC):
    """What every environment must do."""

    steps = 5
    """Env steps of an episode that the tests look at; no episode may be over before."""
    longest = 500
    """Env steps within which the scripted expert, if there is one, has to achieve the task."""

    @abstractmethod
    def make(self) -> Environment:
        """A new environment; the test closes it."""

    def tried_tasks(self, environment: Environment) -> Sequence[str]:
        """The tasks that the tests try; the first two of the environment, as simulators are slow."""
        return environment.tasks[:2]

    def test_observations_are_what_the_info_says(self) -> None:
        for environment, task in self._each_task():
            for seen in self._episode(environment, task, seed=0):
                assert seen.instruction.strip(), f"{task}: an instruction is a text"
                assert seen.images.keys() == environment.info.cameras.keys()
                for camera, (height, width) in environment.info.cameras.items():
                    assert seen.images[camera].shape == (height, width, 3), camera
                    assert seen.images[camera].dtype == np.uint8, camera
                assert seen.state.shape == (environment.info.state_dim,)
                assert seen.state.dtype == np.float32
                assert np.isfinite(seen.state).all()

    def test_tasks_have_different_names_and_the_robot_a_speed(self) -> None:
        with closing(self.make()) as environment:
            assert environment.tasks
            assert len(set(environment.tasks)) == len(environment.tasks)
            assert environment.info.fps > 0
            assert environment.info.action_dim > 0

    def test_a_seed_gives_the_same_episode_whatever_came_before(self) -> None:
        with closing(self.make()) as environment, closing(self.make()) as other:
            for task in self.tried_tasks(environment):
                first = self._episode(environment, task, seed=1)
                self._episode(environment, self.tried_tasks(environment)[-1], seed=2)
                _assert_same(first, self._episode(environment, task, seed=1))
                _assert_same(first, self._episode(other, task, seed=1))

    def test_seeds_give_different_episodes(self) -> None:
        """Different to see, or to an expert: a simulator without cameras may show nothing of its objects."""
        for environment, task in self._each_task():
            beginnings = []
            for seed in (1, 2):
                seen = environment.reset(task, seed=seed)
                action = environment.expert_action() if isinstance(environment, ScriptedExpert) else np.zeros(0)
                beginnings.append((seen, action))
            (first, first_action), (second, second_action) = beginnings
            assert not (_is_same(first, second) and np.array_equal(first_action, second_action)), task

    def test_an_observation_stays_as_it_was_and_so_does_the_action(self) -> None:
        for environment, task in self._each_task():
            seen = environment.reset(task, seed=0)
            state, images = seen.state.copy(), {camera: image.copy() for camera, image in seen.images.items()}
            action = np.ones(environment.info.action_dim, np.float32)
            environment.step(action)
            assert np.array_equal(seen.state, state)
            assert all(np.array_equal(seen.images[camera], image) for camera, image in images.items())
            assert (action == 1).all()

    def test_steps_without_images_are_the_same_steps(self) -> None:
        for environment, task in self._each_task():
            if not isinstance(environment, SkipsImages):
                return
            *_, last = self._episode(environment, task, seed=0)
            environment.reset(task, seed=0)
            *unseen, final = _random_actions(self.steps, environment.info.action_dim)
            for action in unseen:
                assert environment.step_unseen(action).observation.images == {}
            _assert_same([last], [environment.step(final).observation])

    def test_the_scripted_expert_achieves_each_task(self) -> None:
        for environment, task in self._each_task():
            if not isinstance(environment, ScriptedExpert):
                return
            assert any(self._expert_succeeds(environment, task, seed) for seed in range(5)), task

    def _expert_succeeds(self, environment: Environment, task: str, seed: int) -> bool:
        assert isinstance(environment, ScriptedExpert)
        environment.reset(task, seed=seed)
        for _ in range(self.longest):
            action = environment.expert_action()
            assert action.shape == (environment.info.action_dim,)
            assert action.dtype == np.float32
            assert np.abs(action).max() <= 1
            result = environment.step(action)
            if result.success or result.done:
                return result.success
        return False

    def _each_task(self) -> Iterator[tuple[Environment, str]]:
        with closing(self.make()) as environment:
            for task in self.tried_tasks(environment):
                yield environment, task

    def _episode(self, environment: Environment, task: str, *, seed: int) -> list[Observation]:
        """The first observations of an episode in which the robot does whatever comes to its mind."""
        observations = [environment.reset(task, seed=seed)]
        for action in _random_actions(self.steps, environment.info.action_dim):
            result = environment.step(action)
            assert not result.done, "an episode is over too early; set `steps`"
            observations.append(result.observation)
        return observations


def _random_actions(steps: int, action_dim: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (steps, action_dim)).astype(np.float32)


def _is_same(one: Observation, two: Observation) -> bool:
    same_images = all(np.array_equal(image, two.images[camera]) for camera, image in one.images.items())
    return one.instruction == two.instruction and np.array_equal(one.state, two.state) and same_images


def _assert_same(first: Sequence[Observation], second: Sequence[Observation]) -> None:
    for step, (one, two) in enumerate(zip(first, second, strict=True)):
        assert _is_same(one, two), f"env step {step} differs"
