"""A scripted expert for LIBERO's tasks of picking a bowl or a box up and putting it on, or into, something.

It knows where everything is and looks at it anew in each step; so it recovers from noise on its actions, turns the hand
back to where it pointed at the start, and begins again when it has dropped something.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vlatrack.envs.libero_simulator import Numbers
from vlatrack.errors import DataError

# Lengths are metres.
REACH = 0.05
"""How far an action of 1 moves the hand."""
TURN = 0.5
"""How far an action of 1 turns the hand, in radians."""
GRASPS = {"akita_black_bowl": (0.0, -0.047, 0.038), "cream_cheese": (0.0, 0.0, 0.004)}
"""Of a kind of object: where the hand grasps it, from its centre; a bowl at its rim. The fingers close along y."""
RELEASES = {"akita_black_bowl": 0.085}
"""How high over the centre of a kind of object something is let go; over others `RELEASE`."""
RELEASE = 0.03
ABOVE = 0.10
"""How high the hand comes over what it grasps, and carries it over where it is put."""
OPENING, PATIENCE = 5, 30  # env steps
STILL = 0.0005
"""How far fingers move in a step that have closed."""
HELD = 0.09
"""The hand is not so far from what it holds."""

Stage = Literal["approach", "descend", "close", "lift", "carry", "lower", "open", "leave"]


@dataclass(frozen=True)
class _Places:
    """Where things are, in metres."""

    hand: NDArray[np.float64]
    thing: NDArray[np.float64]  # that is to be moved
    grasp: NDArray[np.float64]  # where the hand has to be to grasp it
    target: NDArray[np.float64]  # on which it is put
    release: float  # how high over the target it is let go
    fingers: NDArray[np.float64]  # their positions

    @property
    def to_grasp(self) -> float:
        """The distance along the table from the hand to where it grasps."""
        return _flat(self.hand - self.grasp)


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
        self._upright: Rotation | None = None  # the hand's orientation at the start
        self._fingers = np.full(2, np.inf)  # before this step

    def action(self, seen: Numbers) -> NDArray[np.float32]:
        """The next action, [7], in [-1, 1].

        Args:
            seen: LIBERO's observation.

        Raises:
            DataError: the task is not of this kind.
        """
        places = self._places(seen)
        self._steps += 1
        self._change_stage(places)
        self._fingers = places.fingers
        grip = 1.0 if self._stage in ("close", "lift", "carry", "lower") else -1.0
        move = np.clip(self._way(places) / REACH, -1, 1)
        turn = np.clip(self._tilt(seen) / TURN, -1, 1)
        return np.concatenate([move, turn, [grip]]).astype(np.float32)

    def _tilt(self, seen: Numbers) -> NDArray[np.float64]:
        """The rotation from the hand's orientation to that at the start, axis times angle in the frame of the base."""
        now = Rotation.from_quat(seen["robot0_eef_quat"])
        if self._upright is None:
            self._upright = now
        back: NDArray[np.float64] = (self._upright * now.inv()).as_rotvec()
        return back

    def _places(self, seen: Numbers) -> _Places:
        goals = self._env.parsed_problem["goal_state"]
        relation, thing, *rest = goals[0]
        objects = self._env.objects_dict
        kind = objects[thing].category_name if thing in objects else None
        if len(goals) != 1 or relation not in ("on", "in") or kind not in GRASPS:
            raise DataError(f"LIBERO: no scripted expert for the task {self._task}")
        hand, place, fingers = seen["robot0_eef_pos"], seen[f"{thing}_pos"], seen["robot0_gripper_qpos"]
        if rest[0] in objects:
            release = RELEASES.get(objects[rest[0]].category_name, RELEASE)
            return _Places(hand, place, place + GRASPS[kind], seen[f"{rest[0]}_pos"], release, fingers)
        site = np.array(self._env.sim.data.get_site_xpos(rest[0]))
        return _Places(hand, place, place + GRASPS[kind], site, RELEASE, fingers)

    def _change_stage(self, at: _Places) -> None:
        impatient = self._steps > PATIENCE
        match self._stage:
            case "approach" if at.to_grasp < 0.012 and at.hand[2] < at.grasp[2] + ABOVE + 0.02:
                self._go_on("descend")
            case "descend" if abs(at.hand[2] - at.grasp[2]) < 0.008 or impatient:
                self._go_on("close")
            case "descend" if at.to_grasp > 0.03:
                self._go_on("approach")
            # Not after a number of steps: whoever learns from this sees the fingers, and no number.
            case "close" if self._steps > 2 and np.abs(at.fingers - self._fingers).max() < STILL:
                self._go_on("lift")
            case "lift" | "carry" | "lower" if np.linalg.norm(at.hand - at.thing) > HELD:
                self._go_on("approach")  # it has been dropped
            case "lift" if at.thing[2] > at.target[2] + at.release + 0.03 or impatient:
                self._go_on("carry")
            case "carry" if _flat(at.thing - at.target) < 0.012:
                self._go_on("lower")
            case "lower" if at.thing[2] < at.target[2] + at.release or impatient:
                self._go_on("open")
            case "open" if self._steps > OPENING:
                self._go_on("leave")
            case "leave" if impatient:
                self._go_on("approach")  # it is not where it should be, or the episode would be over

    def _way(self, at: _Places) -> NDArray[np.float64]:
        """The displacement of the hand that is left in this stage."""
        match self._stage:
            case "approach":
                way = at.grasp + np.array([0, 0, ABOVE]) - at.hand
                slow = 0.2 if _flat(way) > 0.05 and way[2] > 0.03 else 1  # first up, then across
                return way * [slow, slow, 1]
            case "descend":
                return at.grasp - at.hand
            case "lift" | "leave":
                return np.array([0, 0, REACH])
            case "carry":
                height = at.target[2] + ABOVE + 0.05 - at.thing[2]
                return np.array([*(at.target - at.thing)[:2], height])
            case "lower":
                return np.array([*(at.target - at.thing)[:2], -0.025])
            case "close" | "open":
                return np.zeros(3)

    def _go_on(self, stage: Stage) -> None:
        self._stage, self._steps = stage, 0


def _flat(way: NDArray[np.float64]) -> float:
    """The length of a way along the table."""
    return float(np.hypot(way[0], way[1]))
