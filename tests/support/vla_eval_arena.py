"""The point in a square as a benchmark of vla-eval, for its own `vla-eval run`."""

import numpy as np
from toy_arena import ToyArena
from vla_eval.benchmarks.base import StepBenchmark, StepResult


class Arena(StepBenchmark):
    """Two tasks, of which every third episode is a failure whatever the policy does."""

    def __init__(self, send_state=False, send_wrist_image=False):
        super().__init__()
        self._arena, self._send_state = ToyArena(), send_state
        assert not send_wrist_image, "the policy has one camera, and its server says so"

    def get_tasks(self):
        return [{"name": name, "suite": "arena", "task_id": number} for number, name in enumerate(ToyArena.tasks)]

    def get_metadata(self):
        return {"max_steps": 7, "suite": "arena"}

    def reset(self, task):
        return self._arena.reset(task["name"], seed=task["episode_idx"])

    def step(self, action):
        result = self._arena.step(np.asarray(action["actions"], np.float32).clip(-1, 1))
        return StepResult(result.observation, result.reward, result.success, {"success": result.success})

    def make_obs(self, raw_obs, task):
        seen = {"images": {"agentview": raw_obs.images["top"]}, "task_description": raw_obs.instruction}
        return seen | ({"states": raw_obs.state} if self._send_state else {})

    def get_step_result(self, step_result):
        return {"success": step_result.info["success"]}
