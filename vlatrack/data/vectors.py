"""What becomes of the numbers of an action or a state: which of them, in which order, units and gripper convention.

Legend: T steps of an episode, A / N numbers of an action / a state of the dataset, D of what they become.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import DataError

Dimension = int | str
"""A number of an action or a state: which one, from 0, or its name in the dataset."""


CONSTANT = "constant"
"""The name of a dimension that a robot lacks."""


@dataclass(frozen=True)
class Constant:
    """Stands for a dimension that a robot lacks."""

    value: float


@dataclass(frozen=True)
class GripperConvention:
    """The numbers that stand for an open and for a closed gripper; what lies between is in proportion."""

    open: float
    closed: float

    def __post_init__(self) -> None:
        assert self.open != self.closed, "no way back"


GRIPPER_CONVENTIONS: Mapping[str, GripperConvention] = {
    "raw": GripperConvention(-1, 1),  # the commands of robosuite, LIBERO and Meta-World
    "openvla": GripperConvention(1, 0),  # OpenVLA, Octo and Bridge; ALOHA where it is normalised
    "closed_1": GripperConvention(0, 1),  # DROID
    "percent": GripperConvention(100, 0),  # LeRobot's SO-100 and SO-101
}


@dataclass(frozen=True)
class GripperConversion:
    """From the convention that dimensions have to another one."""

    dimensions: tuple[Dimension, ...]
    convention: GripperConvention
    to: GripperConvention


@dataclass(frozen=True)
class VectorMapping:
    """What actions, or states, become. All dimensions are named as the dataset has them, before anything is moved."""

    dimensions: tuple[Dimension | Constant, ...] | None = None  # those that are kept, in their new order; None: all
    scale: Mapping[str, float] | Mapping[Dimension, float] = field(default_factory=dict)  # factors by dimension
    gripper: GripperConversion | None = None


@dataclass(frozen=True)
class LinearMap:
    """A mapping with numbers for names: what number d becomes is ``values[taken[d]] * factors[d] + offsets[d]``."""

    taken: NDArray[np.int64]  # [D]; -1: none, a constant
    factors: NDArray[np.float64]  # [D]
    offsets: NDArray[np.float64]  # [D]
    size: int  # A or N
    names: tuple[str, ...]  # [D]; or none, where the dataset has none

    @classmethod
    def of(cls, place: str, mapping: VectorMapping, size: int, names: tuple[str, ...]) -> "LinearMap":
        """
        Args:
            place: the dataset and what is mapped, for messages.
            size: A or N.
            names: of the numbers; others than `size` of them count as none.

        Raises:
            DataError: there is no such dimension, or it is changed twice, or changed and then left out.
        """
        names = names if len(names) == size else ()
        known = _Dimensions(place, size, names)
        factors, offsets = np.append(np.ones(size), 0.0), np.zeros(size + 1)  # the last one is that of constants
        changed = [known.number(dimension) for dimension in mapping.scale]
        factors[changed] = list(mapping.scale.values())
        if (gripper := mapping.gripper) is not None:
            own = [known.number(dimension) for dimension in gripper.dimensions]
            ratio = (gripper.to.closed - gripper.to.open) / (gripper.convention.closed - gripper.convention.open)
            factors[own], offsets[own] = ratio, gripper.to.open - ratio * gripper.convention.open
            changed += own
        wanted = tuple(range(size)) if mapping.dimensions is None else mapping.dimensions
        taken = np.array([-1 if isinstance(one, Constant) else known.number(one) for one in wanted], np.int64)
        known.check_changes(changed, taken.tolist())
        constants = np.array([one.value if isinstance(one, Constant) else 0.0 for one in wanted], np.float64)
        new_names = tuple(CONSTANT if number < 0 else names[number] for number in taken) if names else ()
        return cls(taken, factors[taken], offsets[taken] + constants, size, new_names)

    @property
    def changes(self) -> list[list[float]]:
        """What is done to each number, for a fingerprint; empty if they all stay as they are."""
        numbers = np.stack([self.taken, self.factors, self.offsets])
        same = np.stack([np.arange(self.size), np.ones(self.size), np.zeros(self.size)])
        return [] if np.array_equal(numbers, same) else numbers.tolist()

    def apply(self, values: NDArray[np.float32] | None, steps: int) -> NDArray[np.float32]:
        """[T, D] from [T, A] or [T, N], or from no values at all if every number is a constant."""
        result = np.empty((steps, len(self.taken)), np.float32)
        chosen = self.taken >= 0
        result[:, ~chosen] = self.offsets[~chosen]
        if chosen.any():
            assert values is not None, "a dataset with states has them in every episode"
            # In float64, so that a number that stays keeps its bits.
            result[:, chosen] = values[:, self.taken[chosen]] * self.factors[chosen] + self.offsets[chosen]
        return result


@dataclass(frozen=True)
class _Dimensions:
    """The dimensions of a dataset's actions or states by number and name."""

    place: str
    size: int
    names: tuple[str, ...]

    def number(self, dimension: Dimension) -> int:
        """Which one it is, from 0. A text of digits is a number as well, unless it is a name."""
        if self.size == 0:
            raise DataError(f"{self.place}: there are none in this dataset, so only constants can stand for them")
        if isinstance(dimension, str) and dimension in self.names:
            if self.names.count(dimension) > 1:
                raise DataError(f"{self.place}: several dimensions are called {dimension!r}; give their numbers")
            return self.names.index(dimension)
        if isinstance(dimension, str) and not dimension.isdecimal():
            close = get_close_matches(dimension, self.names, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise DataError(f"{self.place}: no dimension {dimension!r}{meant}; {self._listed()}")
        if not 0 <= int(dimension) < self.size:
            raise DataError(f"{self.place}: no dimension {int(dimension)}; {self._listed()}")
        return int(dimension)

    def check_changes(self, changed: Sequence[int], kept: Sequence[int]) -> None:
        """Raise DataError if a dimension is changed twice, or left out afterwards, which is a slip of its number."""
        for number in changed:
            name = f"{number} ({self.names[number]})" if self.names else f"{number}"
            if changed.count(number) > 1:
                raise DataError(f"{self.place}: dimension {name} is scaled or a gripper more than once; say it once")
            if number not in kept:
                raise DataError(
                    f"{self.place}: dimension {name} is scaled or a gripper, but not among the dimensions that are "
                    "kept; all are named as the dataset has them"
                )

    def _listed(self) -> str:
        names = f": {', '.join(self.names)}" if self.names else ", without names"
        return f"there are 0 to {self.size - 1}{names}"
