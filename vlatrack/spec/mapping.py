"""How a dataset's numbers and cameras become those of the experiment, in its YAML."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from vlatrack.spec.base import Model

DimensionSpec = NonNegativeInt | Annotated[str, Field(min_length=1)]
"""Which number of an action or a state: from 0, or by its name in the dataset."""


class ConstantSpec(Model):
    """Stands for a dimension that the robot lacks."""

    constant: float = Field(description="its value, in every step")


class ConventionSpec(Model):
    """The numbers that stand for an open and for a closed gripper."""

    open: float = Field(description="the number of an open gripper")
    closed: float = Field(description="the number of a closed one")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        if self.open == self.closed:
            raise ValueError(f"open and closed are both {self.open:g}; a gripper's numbers differ")
        return self


Convention = Literal["raw", "openvla", "closed_1", "percent"]


class GripperSpec(Model):
    """From one convention of a gripper to another; what lies between open and closed stays in proportion.

    raw: -1 opens, 1 closes (robosuite, LIBERO, Meta-World). openvla: 1 is open, 0 closed (OpenVLA, Octo, Bridge).
    closed_1: 0 is open, 1 closed (DROID). percent: 100 is open, 0 closed (SO-100, SO-101). Others: their two numbers.
    """

    dimension: DimensionSpec | Annotated[tuple[DimensionSpec, ...], Field(min_length=1)] = Field(
        description="which number it is; a list for several grippers"
    )
    convention: Convention | ConventionSpec = Field(description="of the dataset")
    to: Convention | ConventionSpec = Field("raw", description="what it becomes")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.convention == self.to:
            raise ValueError("convention and to are the same; leave the gripper out")
        return self

    @property
    def dimensions(self) -> tuple[int | str, ...]:
        return self.dimension if isinstance(self.dimension, tuple) else (self.dimension,)


def _not_zero(scale: dict[str, float]) -> dict[str, float]:
    for dimension, factor in scale.items():
        if factor == 0:
            raise ValueError(f"{dimension}: 0 would make a constant of it; say {{constant: 0}} among dimensions")
    return scale


class VectorSpec(Model):
    """What the numbers of an action, or of a state, become. All are named as the dataset has them, whatever moves."""

    dimensions: Annotated[tuple[DimensionSpec | ConstantSpec, ...], Field(min_length=1)] | None = Field(
        None, description="those that are kept, in their new order: numbers from 0, names, or {constant: 0}; null: all"
    )
    scale: Annotated[dict[str, float], AfterValidator(_not_zero)] = Field(
        {}, description="factors by dimension, such as {0: 0.01} from centimetres to metres, or {dy: -1}"
    )
    gripper: GripperSpec | None = Field(None, description="from one convention of its number to another")


def _distinct(cameras: dict[str, str]) -> dict[str, str]:
    names = list(cameras.values())
    for name in names:
        if not name:
            raise ValueError("a camera needs a name")
        if names.count(name) > 1:
            raise ValueError(f"two cameras would be called {name!r}")
    return cameras


CameraNames = Annotated[
    dict[str, str],
    AfterValidator(_distinct),
    Field(description="new names of cameras by their old ones, such as {observation.images.top: third_person}"),
]
