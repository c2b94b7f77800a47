"""The evaluation YAML as frozen models: episodes of a simulator, what the policy sees in them, and how it acts."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vlatrack.spec.base import CustomTarget, Model, Name, Once, Options

Tasks = Annotated[tuple[str, ...], Field(min_length=1), Once]

_TASKS_OF_LIBERO = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}


class MetaWorldSuite(Model):
    """Meta-World v3. A seed determines the layout of an episode."""

    kind: Literal["metaworld"] = "metaworld"
    tasks: Tasks = Field(description="names such as window-open-v3")

    @property
    def name(self) -> str:
        return self.kind


class LiberoSuite(Model):
    """One of LIBERO's suites. Episode n of a task begins in its stored initial state n."""

    kind: Literal["libero"]
    benchmark: Literal["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
    tasks: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), Once] = Field(
        description="numbers of tasks, the first is 0"
    )

    @property
    def name(self) -> str:
        return self.benchmark

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        count = _TASKS_OF_LIBERO[self.benchmark]
        if max(self.tasks) >= count:
            raise ValueError(f"tasks: {self.benchmark} has {count} tasks, 0 to {count - 1}; got {max(self.tasks)}")
        return self


class CustomSuite(Model):
    """Your own simulator: `package.module:Class`, called with `options` as keyword arguments."""

    kind: Literal["custom"]
    name: Name = "custom"
    target: CustomTarget
    options: Options = {}
    tasks: Tasks = Field(description="names that the simulator's `reset` takes")


Suite = Annotated[MetaWorldSuite | LiberoSuite | CustomSuite, Field(discriminator="kind")]


class RequestSpec(Model):
    """Where a server that speaks openpi's protocol, and is not `vlatrack serve`, looks for the parts of an observation;
    the defaults are those of openpi's LIBERO policies."""

    images: Annotated[dict[str, str], Field(min_length=1)] | None = Field(
        None,
        description="key: camera in the policy's training data, as in `cameras`; null: observation/wrist_image for the "
        "camera at the hand, observation/image for the other one",
    )
    state: str | None = Field("observation/state", description="key of the proprioceptive state; null: it is not sent")
    prompt: str = Field("prompt", description="key of the instruction")
    actions: str = Field("actions", description="key of the chunk in the answer")
    size: Annotated[int, Field(ge=16, le=1024)] | None = Field(
        None, description="height and width of the images, black bars where they are not square; null: as rendered"
    )


class ActingSpec(Model):
    """How the policy acts in the episodes; not a part of the episode set."""

    route: Literal["head", "tokens"] = Field("head", description="the continuous head, or the action tokens")
    replan_every: PositiveInt | None = Field(
        None, description="env steps after which a new chunk is asked for; null: when a chunk is used up"
    )
    ensemble: NonNegativeFloat | None = Field(
        None, description="temporal ensembling: a chunk for each env step, older ones weigh exp(ensemble) times more"
    )
    history: PositiveInt | None = Field(
        None, description="moments of images that the policy has to see; null: as it was trained"
    )
    blind: bool = Field(False, description="show the policy black images: the baseline of not seeing")
    expert: bool = Field(False, description="let the simulator's scripted expert act instead: the ceiling")
    request: RequestSpec = Field(RequestSpec(), description="of a policy behind somebody else's server (--policy)")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.blind and self.expert:
            raise ValueError("blind and expert exclude one another; set one of them")
        if self.ensemble is not None and self.replan_every not in (None, 1):
            raise ValueError("ensemble asks for a chunk in each env step; leave out replan_every")
        return self


class EvaluationSpec(Model):
    """One evaluation in a simulator: an episode set, and how the policy acts in it."""

    name: Name
    suite: Suite
    episodes: Annotated[int, Field(ge=1, le=100_000)] = Field(50, description="of each task")
    first_seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        1_000_000, description="episode n of a task has the seed first_seed + n; with kind: libero all have this one"
    )
    max_steps: PositiveInt = Field(description="env steps of an episode; without success by then it is a failure")
    waits: NonNegativeInt = Field(0, description="env steps before the policy acts, for objects to settle")
    no_op: tuple[float, ...] | None = Field(None, description="the action of these steps; null: zeros")
    cameras: Annotated[dict[str, str], Field(min_length=1)] = Field(
        description="camera of the simulator: camera in the policy's training data"
    )
    resolution: Annotated[int, Field(ge=16, le=1024)] = Field(
        128, description="height and width of the rendered images; a custom simulator has its own"
    )
    rotation: Literal[0, 180] = Field(0, description="degrees by which images are turned for the policy")
    acting: ActingSpec = ActingSpec()

    @field_validator("no_op")
    @classmethod
    def _has_waits(cls, no_op: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        if no_op is not None and not info.data.get("waits"):
            raise ValueError("is the action of the waits, and there are none; set waits, or leave it out")
        return no_op

    @field_validator("cameras")
    @classmethod
    def _each_camera_once(cls, cameras: dict[str, str]) -> dict[str, str]:
        seen = list(cameras.values())
        if twice := [camera for number, camera in enumerate(seen) if camera in seen[:number]]:
            raise ValueError(f"{twice[0]} is shown by two cameras of the simulator; name each once")
        return cameras

    @model_validator(mode="after")
    def _asks_about_cameras_that_are_shown(self) -> Self:
        shown = list(self.cameras.values())
        for key, camera in (self.acting.request.images or {}).items():
            if camera not in shown:
                raise ValueError(
                    f"acting.request.images.{key}: cameras does not show {camera}; it shows {', '.join(shown)}"
                )
        return self

    @property
    def label(self) -> str:
        """The name of its results: ``metaworld``, ``metaworld-blind`` or ``metaworld-expert``."""
        return self.name + _actor(self.acting)

    @property
    def metric_group(self) -> str:
        """What its metrics stand under, after ``sim/``."""
        return self.suite.name + _actor(self.acting)

    def set_settings(self) -> dict[str, object]:
        """The settings of the episode set: all but the name, and how the policy acts."""
        return self.model_dump(mode="json", exclude={"name", "acting"})


def _actor(acting: ActingSpec) -> str:
    return "-blind" if acting.blind else "-expert" if acting.expert else ""


def set_digest(settings: Mapping[str, object], versions: Mapping[str, str]) -> str:
    """SHA-256 (64 hex digits) of an episode set's settings and of the versions of what simulates and renders it."""
    content = {"settings": dict(settings), "versions": dict(versions)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
