"""The demonstrations in an experiment's YAML: sources, the selection of their episodes, and the splits."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from vlatrack.spec.base import CustomTarget, Model, Once, Options


class EpisodeSelection(Model):
    """Which episodes of a dataset are used."""

    tasks: Annotated[tuple[str, ...], Once] | None = Field(None, description="only these tasks (instruction texts)")
    exclude_tasks: Annotated[tuple[str, ...], Once] = Field((), description="all tasks but these")
    part: Literal["all", "all_but_last_tenth", "last_tenth"] = Field("all", description="of each task's episodes")

    @model_validator(mode="after")
    def _tasks_or_exclude_tasks(self) -> Self:
        if self.tasks is not None and self.exclude_tasks:
            raise ValueError("give tasks or exclude_tasks, not both")
        return self


class LeRobotSource(EpisodeSelection):
    """A dataset folder in the LeRobot v3.0 layout."""

    kind: Literal["lerobot"] = "lerobot"
    path: str = Field(description="the dataset's folder, absolute or from where vlatrack is started")
    action: str = Field("action", description="feature that holds the action")
    state: str | None = Field("observation.state", description="feature that holds the proprioceptive state")


class LiberoSource(EpisodeSelection):
    """A folder of LIBERO demonstrations, one HDF5 file a task."""

    kind: Literal["libero_hdf5"]
    path: str = Field(description="the folder of the HDF5 files, absolute or from where vlatrack is started")
    skip_no_ops: bool = Field(
        True, description="leave out steps in which the robot does not move, as the reference does"
    )
    images: Literal["upright", "rotated"] = Field(
        "upright",
        description="as a person sees the scene; or LIBERO's turned by 180 degrees, its mirror image, as the reference",
    )


class CustomSource(EpisodeSelection):
    """Your own dataset: `package.module:Class`, called with `options` as keyword arguments."""

    kind: Literal["custom"]
    target: CustomTarget
    options: Options = {}


Source = Annotated[LeRobotSource | LiberoSource | CustomSource, Field(discriminator="kind")]


class RecordedSpec(Model):
    """How the demonstrations were made, for evaluations in a simulator, which have to do the same; null: not known."""

    rotation: Literal[0, 180] | None = Field(
        None, description="degrees by which the images are turned, compared with those of the simulator"
    )
    prompt: Literal["language", "name"] | None = Field(
        None, description="what the episodes have as task: its instruction, or its name with spaces"
    )
    gripper: Literal["raw", "openvla"] | None = Field(
        None, description="raw: as the simulator takes it; openvla: 0 for closed and 1 for open"
    )
    waits: NonNegativeInt | None = Field(
        None, description="env steps without acting, such as objects need to settle, before an episode's first moment"
    )


class AugmentationSpec(Model):
    """Other crops and colours of the training images; all frames of an episode's variant and camera share one draw."""

    crop: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="least share of height and width in a crop")
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="factors from 1 - x to 1 + x; 0: as it is")
    contrast: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="factors from 1 - x to 1 + x; 0: as it is")
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="factors from 1 - x to 1 + x; 0: as it is")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="turns of the colour circle, from -x to x")
    variants: PositiveInt = Field(4, description="variants of each episode that are tokenised beside the original")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.crop == 1 and not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "changes nothing; give crop below 1, brightness, contrast, saturation or hue, or leave it out"
            )
        return self


class DataSpec(Model):
    """The demonstrations: what the policy sees of them, and the three splits."""

    cameras: Annotated[tuple[str, ...], Field(min_length=1), Once] = Field(
        description="camera features in prompt order: third-person first, then wrist"
    )
    use_state: bool = Field(True, description="put the proprioceptive state into the prompt")
    history: PositiveInt = Field(1, description="time steps of images in the prompt, the current one included")
    history_start: Literal["repeat", "shorter"] = Field(
        "repeat", description="before an episode's first step: its images stand for earlier ones, or there are fewer"
    )
    samples: Annotated[tuple[Literal["vla", "world_model"], ...], Field(min_length=1), Once] = Field(
        ("vla",),
        description="kinds of training samples: a step begins one of each, if its chunk, or its next image, is there",
    )
    sample_every: PositiveInt = Field(
        1, description="a training sample starts at every n-th step of an episode; at 80 Hz neighbours are nearly alike"
    )
    recorded: RecordedSpec = RecordedSpec()
    train: Source = Field(description="episodes that the policy learns from")
    val_ind: Source | None = Field(None, description="held-out episodes of training tasks")
    val_ood: Source | None = Field(None, description="held-out tasks")
