"""A scripted expert for LIBERO's tasks of picking a bowl or a box up and putting it on, or into, something.

It knows where everything is and looks at it anew in each step; so it recovers from noise on its actions, turns the hand
back to where it pointed at the start, and begins again when it has dropped something.

It is made to be learnt from by a policy that sees one moment: what it does next depends on what can be seen, hardly on
how long it has done something, and it never stands still until a number of steps is over. A policy that learns from an
expert that waits does not know when to end waiting.
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
GRASPS = {"akita_black_bowl": (0.0, 0.047, 0.038), "cream_cheese": (0.0, 0.0, 0.004)}
"""Of a kind of object: where the hand grasps it, from its centre. The fingers close along y; they grasp a bowl at the
side of its rim that is away from the cabinet, which the hand would hit over the plate."""
RELEASES = {"akita_black_bowl": 0.085}
"""How high over the centre of a kind of object something is let go; over others `RELEASE`, before it touches them."""
RELEASE = 0.06
ABOVE = 0.10
"""How high the hand comes over what it grasps, and carries it over where it is put."""
NEAR, STEEP = 0.015, 3.0
"""The hand descends in a funnel: so far from the middle it may be at the bottom, and so steep are the sides."""
THERE = 0.02
"""So far from the middle it may close or open, which is where the funnel's sides begin to lift it noticeably."""
BEYOND = 0.025
"""It aims so far below where it closes or opens: small actions may not move the arm at all."""
OPENING, PATIENCE = 5, 30  # env steps
STILL = 0.001
"""How far fingers move in a step that have closed."""
HELD = 0.09
"""The hand is not so far from what it holds."""

Stage = Literal["reach", "close", "carry", "open", "leave"]


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
    def to_grasp(self) -> NDArray[np.float64]:
        """From the hand to where it grasps."""
        return self.grasp - self.hand

    @property
    def to_release(self) -> NDArray[np.float64]:
        """From the thing to where it is let go."""
        return self.target + np.array([0, 0, self.release]) - self.thing


class Expert:
    """Acts in one episode.

    Args:
        task: its name, for messages.
        env: the problem, a ``BDDLBaseDomain`` of LIBERO.
    """

    def __init__(self, task: str, env: Any) -> None:
        self._task, self._env = task, env
        self._stage: Stage = "reach"
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
        grip = 1.0 if self._stage in ("close", "carry") else -1.0
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
        match self._stage:
            case "reach" if _flat(at.to_grasp) < THERE and at.to_grasp[2] > -0.008:
                self._go_on("close")
            # Not after a number of steps: whoever learns from this sees the fingers, and no number.
            case "close" if self._steps > 2 and np.abs(at.fingers - self._fingers).max() < STILL:
                self._go_on("carry")
            case "carry" if np.linalg.norm(at.hand - at.thing) > HELD:
                self._go_on("reach")  # it has been dropped
            case "carry" if _flat(at.to_release) < THERE and at.to_release[2] > 0:
                self._go_on("open")
            case "open" if self._steps > OPENING:
                self._go_on("leave")
            case "leave" if self._steps > PATIENCE:
                self._go_on("reach")  # it is not where it should be, or the episode would be over

    def _way(self, at: _Places) -> NDArray[np.float64]:
        """The displacement of the hand that is left in this stage."""
        match self._stage:
            case "reach":
                return _through_funnel(at.to_grasp)
            case "carry":
                return _through_funnel(at.to_release)
            case "leave":
                return np.array([0, 0, REACH])
            case "close" | "open":
                return np.zeros(3)

    def _go_on(self, stage: Stage) -> None:
        self._stage, self._steps = stage, 0


def _through_funnel(way: NDArray[np.float64]) -> NDArray[np.float64]:
    """The next displacement on a way that ends from above: first up, then across, and down the nearer it is.

    It is continuous in where things are, so that who sees them a little elsewhere does nearly the same; of two stages,
    one over the other, it would have to know exactly where the first ends.
    """
    height = np.clip(STEEP * (_flat(way) - NEAR), 0, ABOVE)
    up = way[2] + height - BEYOND
    across = np.clip(1 - up / REACH, 0, 1)
    return np.array([across * way[0], across * way[1], up])


def _flat(way: NDArray[np.float64]) -> float:
    """The length of a way along the table."""
    return float(np.hypot(way[0], way[1]))
