"""What all parts of a spec have in common."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="letters, digits, '.', '_' and '-', a letter or digit first",
    ),
]
CustomTarget = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$|^[A-Za-z_][\w.-]*$",
        description="a class as package.module:Class, or the name of an entry point of an installed package",
    ),
]


def _each_once(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{value!r} is listed twice; list it once")
    return values


Once = AfterValidator(_each_once)
"""For a list without duplicates."""


class Model(BaseModel):
    """Base of every part of a spec: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Options = Annotated[dict[str, str | int | float | bool | None], Field(description="keyword arguments of the class")]
