"""A scripted expert for LIBERO's tasks of picking a bowl or a box up and putting it on, or into, something.

It knows where everything is and looks at it anew in each step; so it recovers from noise on its actions, and begins
again when it has dropped something.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlatrack.envs.libero_simulator import Numbers
from vlatrack.errors import DataError

# Lengths are metres.
REACH = 0.05
"""How far an action of 1 moves the hand."""
GRASPS = {"akita_black_bowl": (0.0, -0.047, 0.038), "cream_cheese": (0.0, 0.0, 0.004)}
"""Of a kind of object: where the hand grasps it, from its centre; a bowl at its rim. The fingers close along y."""
RELEASES = {"akita_black_bowl": 0.085}
"""How high over the centre of a kind of object something is let go; over others `RELEASE`."""
RELEASE = 0.03
ABOVE = 0.10
"""How high the hand comes over what it grasps, and carries it over where it is put."""
CLOSING, OPENING, PATIENCE = 10, 5, 30  # env steps
HELD = 0.09
"""The hand is not so far from what it holds."""

Stage = Literal["approach", "descend", "close", "lift", "carry", "lower", "open", "leave"]


class Expert:
    """Acts in one episode.

    Args:
        task: its name, for messages.
        env: the problem, a ``BDDLBaseDomain`` of LIBERO.
    """

    def __init__(self, task: str, env: Any) -> None:
        self._task, self._env = task, env
        self._stage: Stage = "approach"
        self._steps = 0  # in this stage

    def action(self, seen: Numbers) -> NDArray[np.float32]:
        """The next action, [7], in [-1, 1].

        Args:
            seen: LIBERO's observation.

        Raises:
            DataError: the task is not of this kind.
        """
        thing, grasp, target, release = self._job(seen)
        hand = seen["robot0_eef_pos"]
        self._steps += 1
        self._change_stage(hand, thing, grasp, target, release)
        towards = self._way(hand, thing, grasp, target)
        grip = 1.0 if self._stage in ("close", "lift", "carry", "lower") else -1.0
        move = np.clip(towards / REACH, -1, 1)
        return np.concatenate([move, np.zeros(3), [grip]]).astype(np.float32)

    def _job(self, seen: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
        """Where the thing is, where to grasp it, where to put it, and how high over that to let it go."""
        goals = self._env.parsed_problem["goal_state"]
        relation, thing, *rest = goals[0]
        kind = self._env.objects_dict[thing].category_name if thing in self._env.objects_dict else None
        if len(goals) != 1 or relation not in ("on", "in") or kind not in GRASPS:
            raise DataError(f"LIBERO: no scripted expert for the task {self._task}")
        place = np.array(seen[f"{thing}_pos"])
        grasp = place + GRASPS[kind]
        if rest[0] in self._env.objects_dict:
            release = RELEASES.get(self._env.objects_dict[rest[0]].category_name, RELEASE)
            return place, grasp, np.array(seen[f"{rest[0]}_pos"]), release
        return place, grasp, np.array(self._env.sim.data.get_site_xpos(rest[0])), RELEASE

    def _change_stage(
        self,
        hand: NDArray[np.float64],
        thing: NDArray[np.float64],
        grasp: NDArray[np.float64],
        target: NDArray[np.float64],
        release: float,
    ) -> None:
        dropped = np.linalg.norm(hand - thing) > HELD
        impatient = self._steps > PATIENCE
        match self._stage:
            case "approach" if _flat(hand - grasp) < 0.012 and hand[2] < grasp[2] + ABOVE + 0.02:
                self._go_on("descend")
            case "descend" if abs(hand[2] - grasp[2]) < 0.008 or impatient:
                self._go_on("close")
            case "descend" if _flat(hand - grasp) > 0.03:
                self._go_on("approach")
            case "close" if self._steps > CLOSING:
                self._go_on("lift")
            case "lift" | "carry" | "lower" if dropped:
                self._go_on("approach")
            case "lift" if thing[2] > target[2] + release + 0.03 or impatient:
                self._go_on("carry")
            case "carry" if _flat(thing - target) < 0.012:
                self._go_on("lower")
            case "lower" if thing[2] < target[2] + release or impatient:
                self._go_on("open")
            case "open" if self._steps > OPENING:
                self._go_on("leave")
            case "leave" if self._steps > PATIENCE:
                self._go_on("approach")  # it is not where it should be, or the episode would be over

    def _way(
        self,
        hand: NDArray[np.float64],
        thing: NDArray[np.float64],
        grasp: NDArray[np.float64],
        target: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """The displacement of the hand that is left in this stage."""
        match self._stage:
            case "approach":
                way = grasp + np.array([0, 0, ABOVE]) - hand
                slow = 0.2 if _flat(way) > 0.05 and way[2] > 0.03 else 1  # first up, then across
                return way * [slow, slow, 1]
            case "descend":
                return grasp - hand
            case "carry":
                height = target[2] + ABOVE + 0.05 - thing[2]
                return np.array([*(target - thing)[:2], height])
            case "lower":
                return np.array([*(target - thing)[:2], -0.025])
            case "lift" | "leave":
                return np.array([0, 0, REACH])
            case "close" | "open":
                return np.zeros(3)

    def _go_on(self, stage: Stage) -> None:
        self._stage, self._steps = stage, 0


def _flat(way: NDArray[np.float64]) -> float:
    """The length of a way along the table."""
    return float(np.hypot(way[0], way[1]))
