"""The evaluation YAML as frozen models: episodes of a simulator, what the policy sees in them, and how it acts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from vlatrack.spec.libero_tasks import INITIAL_STATES, TASKS

Tasks = Annotated[tuple[str, ...], Field(min_length=1), Once]


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
    tasks: Tasks = Field(description="names or numbers of tasks, the first is 0; or all")
    initial_states: Literal["stored", "sampled"] = Field(
        "stored", description="those of LIBERO; or a layout drawn from each episode's seed, as for demonstrations"
    )
    images: Literal["raw", "upright"] = Field(
        "raw", description="as LIBERO gives them, upside down; upright for policies trained on kind: libero_hdf5"
    )
    rendering: Literal["original", "fast"] = Field(
        "original", description="LIBERO's own pixels; or without multisampling, shadows and reflections"
    )

    @property
    def name(self) -> str:
        return self.benchmark

    @field_validator("tasks", mode="before")
    @classmethod
    def _named(cls, given: object, info: ValidationInfo) -> object:
        names = TASKS.get(info.data.get("benchmark", ""))
        if names is None:
            return ("any",)  # the unknown benchmark is what is told of
        if given == "all":
            return names
        return tuple(_libero_task(task, names) for task in given) if isinstance(given, (list, tuple)) else given


def _libero_task(task: object, names: Sequence[str]) -> object:
    """The name of a task that may be a number."""
    if not isinstance(task, int) or isinstance(task, bool):
        return task
    if not 0 <= task < len(names):
        raise ValueError(f"there are {len(names)} tasks, 0 to {len(names) - 1}; got {task}")
    return names[task]


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


class ResizeSpec(Model):
    """To which size images are brought, and how."""

    size: Annotated[int, Field(ge=16, le=1024)] = Field(description="height and width in pixels")
    method: Literal["pad", "lanczos3"] = Field(
        description="pad: bilinear, with black at the sides of what is not square (openpi); lanczos3: a Lanczos "
        "filter of three lobes (OpenVLA-OFT)"
    )


class ImagesSpec(Model):
    """What is done to the images before the policy sees them, in this order; by default nothing."""

    jpeg: bool = Field(False, description="compress them as JPEG of quality 95, and back")
    resize: ResizeSpec | None = Field(None, description="null: the policy gets them as rendered, and resizes them")
    crop_area: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the area, around the centre, that is enlarged to the whole image"
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
    horizon: PositiveInt | None = Field(
        None, description="steps of a chunk that the policy has to have; null: as it was trained"
    )
    statistics: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None = Field(
        None,
        description="SHA-256, or its first 8 or more digits, of the normalisation statistics that the policy has to "
        "have; null: as it was trained",
    )
    images: ImagesSpec = ImagesSpec()
    gripper: Literal["raw", "sign", "openvla"] = Field(
        "raw",
        description="what becomes of an action's last number; raw: nothing; sign: 1 from 0 on, else -1; openvla: from "
        "0.5 on -1 (open), else 1 (closed)",
    )
    dtype: Literal["bf16", "fp32"] | None = Field(None, description="that it computes in; null: as its weights are")
    compile: bool = Field(False, description="compile its decoder layers, which takes a minute or more at the start")
    static_cache: bool = Field(False, description="keep keys and values of tokens in memory that stays in its place")
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

    def settings(self) -> dict[str, object]:
        """As JSON, without settings that a later version added, where they have their defaults."""
        return _without(_ACTING_ADDED_LATER, self.model_dump(mode="json"))


class EvaluationSpec(Model):
    """One evaluation in a simulator: an episode set, and how the policy acts in it."""

    name: Name
    suite: Suite
    episodes: Annotated[int, Field(ge=1, le=100_000)] = Field(50, description="of each task")
    first_seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        1_000_000,
        description="episode n of a task has the seed first_seed + n; in stored initial states all have this one",
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
    prompt: Literal["language", "name"] = Field(
        "language",
        description="what the policy is asked: the task's instruction, or its name, with spaces (LIBERO: 'KITCHEN "
        "SCENE3 turn on …')",
    )
    acting: ActingSpec = ActingSpec()

    @field_validator("episodes")
    @classmethod
    def _have_initial_states(cls, episodes: int, info: ValidationInfo) -> int:
        suite = info.data.get("suite")
        stored = isinstance(suite, LiberoSuite) and suite.initial_states == "stored"
        if stored and episodes > INITIAL_STATES:
            raise ValueError(f"{episodes} of each task, but LIBERO stores {INITIAL_STATES} initial states")
        return episodes

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

    @field_validator("prompt")
    @classmethod
    def _has_names(cls, prompt: str, info: ValidationInfo) -> str:
        suite = info.data.get("suite")
        if prompt == "name" and suite is not None and not isinstance(suite, LiberoSuite):
            raise ValueError(f"{suite.name} has only the language of its tasks; leave it out")
        return prompt

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
        """The settings of the episode set: all but the name, and how the policy acts.

        Settings that a later version added are left out where they have their defaults, so that the digest stays.
        """
        return _without(_SET_ADDED_LATER, self.model_dump(mode="json", exclude={"name", "acting"}))


_SET_ADDED_LATER = {"prompt": "language"}
_ACTING_ADDED_LATER = {
    "horizon": None,
    "statistics": None,
    "images": ImagesSpec().model_dump(mode="json"),
    "gripper": "raw",
    "dtype": None,
    "compile": False,
    "static_cache": False,
    "request": RequestSpec().model_dump(mode="json"),
}


def _without(defaults: Mapping[str, object], settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key not in defaults or value != defaults[key]}


def _actor(acting: ActingSpec) -> str:
    return "-blind" if acting.blind else "-expert" if acting.expert else ""


def set_digest(settings: Mapping[str, object], versions: Mapping[str, str]) -> str:
    """SHA-256 (64 hex digits) of an episode set's settings and of the versions of what simulates and renders it."""
    content = {"settings": dict(settings), "versions": dict(versions)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
