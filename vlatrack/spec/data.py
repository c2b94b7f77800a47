"""The demonstrations in an experiment's YAML: sources, the selection of their episodes, and the splits."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from vlatrack.spec.base import CustomTarget, Model, Once, Options
from vlatrack.spec.mapping import CameraNames, VectorSpec

_ROOT = (
    "the folder below which all its files lie, wherever its paths say that it is; null: the one above the list's "
    "folder, as the reference arranges its data"
)


class EpisodeSelection(Model):
    """Which episodes of a dataset are used, and what becomes of their numbers and cameras."""

    tasks: Annotated[tuple[str, ...], Once] | None = Field(None, description="only these tasks (instruction texts)")
    exclude_tasks: Annotated[tuple[str, ...], Once] = Field((), description="all tasks but these")
    part: Literal["all", "all_but_last_tenth", "last_tenth"] = Field("all", description="of each task's episodes")
    skip_bad: bool = Field(False, description="leave out episodes that cannot be read or hold NaN, and say which")
    cap: PositiveInt | None = Field(None, description="at most so many episodes, evenly spread over those left")
    weight: PositiveFloat | None = Field(
        None, description="in a mixture: its share of an epoch's samples is this in the sum of all weights"
    )
    actions: VectorSpec | None = Field(None, description="which of an action's numbers, in which order and units")
    states: VectorSpec | None = Field(None, description="the same of a state")
    cameras: CameraNames = {}

    @model_validator(mode="after")
    def _tasks_or_exclude_tasks(self) -> Self:
        if self.tasks is not None and self.exclude_tasks:
            raise ValueError("give tasks or exclude_tasks, not both")
        return self


class LeRobotSource(EpisodeSelection):
    """A dataset folder in a LeRobot layout: v3.0, v2.1 or v2.0."""

    kind: Literal["lerobot"] = "lerobot"
    path: str | None = Field(
        None, description="the dataset's folder, absolute or from where vlatrack is started; or s3://…, gs://…, hf://…"
    )
    repo: str | None = Field(
        None, pattern=r"^[\w.-]+/[\w.-]+$", description="instead: a dataset of the Hugging Face hub, owner/name"
    )
    revision: str | None = Field(
        None, min_length=1, description="branch, tag or commit of repo; default: its main branch as it is now"
    )
    action: str = Field("action", description="feature that holds the action")
    state: str | None = Field("observation.state", description="feature that holds the proprioceptive state")

    @model_validator(mode="after")
    def _path_or_repo(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("give path, the dataset's folder, or repo, a dataset of the hub")
        if self.revision is not None and self.repo is None:
            raise ValueError("revision belongs to a repo of the hub; a folder has none")
        return self


class LiberoSource(EpisodeSelection):
    """A folder of LIBERO demonstrations, one HDF5 file a task."""

    kind: Literal["libero_hdf5"]
    path: str = Field(description="the folder of the HDF5 files, absolute or from where vlatrack is started")
    skip_no_ops: bool = Field(
        True, description="leave out steps in which the robot does not move, as the reference does"
    )
    images: Literal["upright", "rotated", "as_stored"] = Field(
        "upright",
        description="as a person sees the scene: a vertical flip of what is stored; or what is stored turned by 180 "
        "degrees: the mirror image of that, as the reference has it; or as stored, upside down",
    )
    order: Literal["number", "name"] = Field(
        "number",
        description="of a file's demonstrations, which decides which are the last tenth: demo_2 before demo_10, or by "
        "name, demo_10 before demo_2, as the reference",
    )
    prompt: Literal["language", "name"] = Field(
        "language",
        description="the instruction: the task's, or its name with spaces and the scene, as the reference trains",
    )


class RobomimicSource(EpisodeSelection):
    """robomimic's HDF5 files: one, or a folder of them."""

    kind: Literal["robomimic_hdf5"]
    path: str = Field(description="the file or the folder, absolute or from where vlatrack is started")
    action: str = Field("actions", description="what a demonstration has as its actions")
    state: Annotated[tuple[str, ...], Once] | None = Field(
        None, description="observations that make the state; null: robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos"
    )
    camera_keys: Annotated[tuple[str, ...], Once] | None = Field(
        None, description="observations that are images; null: all of them"
    )
    instruction: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="of all demonstrations; null: each has its own (ep_meta), or the name of its file"
    )
    order: Literal["number", "name"] = Field("number", description="of a file's demonstrations; see libero_hdf5")


class RynnVlaConversationsSource(EpisodeSelection):
    """The conversations of RynnVLA-002 or WorldVLA: a JSON list of png and npy files, read as whole trajectories."""

    kind: Literal["rynnvla_conversations"]
    path: str = Field(description="the list, .json or .jsonl, absolute or from where vlatrack is started")
    root: str | None = Field(None, description=_ROOT)
    fps: PositiveFloat = Field(20.0, description="time steps in a second, which the format does not tell; LIBERO's 20")


class RynnVlaRecordsSource(Model):
    """The token rows of a pre-tokenised training of RynnVLA-002 or WorldVLA. They have no episodes, tasks or images."""

    kind: Literal["rynnvla_records"]
    path: str = Field(description="its YAML with META, or one of its lists, .json or .jsonl")
    root: str | None = Field(None, description=_ROOT)


class RldsSource(EpisodeSelection):
    """A split of an RLDS dataset of TFRecords, as TensorFlow Datasets and Open X-Embodiment have them."""

    kind: Literal["rlds"]
    path: str = Field(description="the folder with dataset_info.json, absolute or from where vlatrack is started")
    fps: PositiveFloat = Field(description="time steps in a second, which RLDS does not store")
    split: str = Field("train", description="as dataset_info.json names it")
    action: str | tuple[str, ...] = Field(
        "action", description="feature of a step that holds the action, or several, which are put behind each other"
    )
    state: str | tuple[str, ...] | None = Field(
        "observation/state", description="the same for the proprioceptive state; null: the dataset is used without"
    )
    instruction: str = Field("language_instruction", description="feature of a step that holds the instruction")


class CustomSource(EpisodeSelection):
    """Your own dataset: `package.module:Class`, called with `options` as keyword arguments."""

    kind: Literal["custom"]
    target: CustomTarget
    options: Options = {}


Source = Annotated[
    LeRobotSource | LiberoSource | RobomimicSource | RynnVlaConversationsSource | RldsSource | CustomSource,
    Field(discriminator="kind"),
]


class MixtureSpec(Model):
    """Several datasets as one, so that one policy trains on several robots."""

    kind: Literal["mixture"]
    sources: Annotated[tuple[Source, ...], Field(min_length=1)] = Field(
        description="the datasets, each with its selection, weight, cap and mapping"
    )
    epoch_samples: PositiveInt | None = Field(
        None, description="samples of an epoch; null: as many as the datasets have together"
    )

    @field_validator("sources")
    @classmethod
    def _all_or_no_weights(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        without = [number for number, source in enumerate(sources) if source.weight is None]
        if 0 < len(without) < len(sources):
            raise ValueError(f"source {without[0]} has no weight, others have; give all sources a weight, or none")
        return sources

    @model_validator(mode="after")
    def _epoch_samples_need_weights(self) -> Self:
        if self.epoch_samples is not None and self.sources[0].weight is None:
            raise ValueError("epoch_samples goes with weights; give each source a weight")
        return self


SplitSource = Annotated[Source | MixtureSpec | RynnVlaRecordsSource, Field(discriminator="kind")]
"""What a split may name: a dataset of episodes, several as one, or finished token rows."""


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
    variants: PositiveInt | None = Field(
        4,
        description="variants of each episode that are tokenised beside the original; null with images: stream, where "
        "changes are drawn anew each time that a sample is shown",
    )

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.crop == 1 and not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "changes nothing; give crop below 1, brightness, contrast, saturation or hue, or leave it out"
            )
        return self


Seconds = Annotated[float, Field(allow_inf_nan=False)]


class DataSpec(Model):
    """The demonstrations: what the policy sees of them, and the three splits."""

    cameras: Annotated[tuple[str, ...], Field(min_length=1), Once] = Field(
        description="camera features in prompt order: third-person first, then wrist"
    )
    use_state: bool = Field(True, description="put the proprioceptive state into the prompt")
    history: PositiveInt = Field(1, description="time steps of images in the prompt, the current one included")
    world_history: PositiveInt | None = Field(
        None, description="the same of world-model samples; null: as many as history"
    )
    history_deltas: Annotated[tuple[Seconds, ...], Field(min_length=1)] | None = Field(
        None,
        description="instead of history: the moments whose images are in the prompt, in seconds relative to a step, "
        "such as [-0.5, 0.0], at any fps",
    )
    tolerance_s: PositiveFloat | None = Field(
        None,
        description="seconds by which a step may be off its delta; null: 0.0001, or 1/fps where the time between steps "
        "varies",
    )
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
    images: Literal["store", "stream"] = Field(
        "store",
        description="encoded once, before the training, and kept; or read and encoded while it trains: nothing to wait "
        "for at its start, but each step takes longer",
    )
    augmentation: AugmentationSpec | None = Field(
        None, description="variants of the training images; null: as they are"
    )
    recorded: RecordedSpec = RecordedSpec()
    train: SplitSource = Field(description="episodes that the policy learns from")
    val_ind: SplitSource | None = Field(None, description="held-out episodes of training tasks")
    val_ood: SplitSource | None = Field(None, description="held-out tasks")

    @field_validator("history_deltas")
    @classmethod
    def _rising_to_now(cls, deltas: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for delta in deltas or ():
            if delta > 0:
                raise ValueError(f"{delta:g} is in the future; give seconds before a step, at most 0")
        for one, other in pairwise(deltas or ()):
            if one >= other:
                raise ValueError(f"{other:g} comes after {one:g}; give the oldest first, each once")
        if deltas is not None and deltas[-1] != 0:
            raise ValueError(f"ends with {deltas[-1]:g}; the last is 0, the step itself")
        return deltas

    @model_validator(mode="after")
    def _steps_or_seconds(self) -> Self:
        if self.history_deltas is not None and self.history != 1:
            raise ValueError(f"history: {self.history} counts steps, history_deltas seconds; leave one of them out")
        if self.history_deltas is None and self.tolerance_s is not None:
            raise ValueError("tolerance_s belongs to history_deltas; leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _streamed_images_have_no_variants(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("images") == "stream" and isinstance(data.get("augmentation"), dict):
            return {**data, "augmentation": {"variants": None, **data["augmentation"]}}
        return data

    @model_validator(mode="after")
    def _variants_are_those_of_the_store(self) -> Self:
        if self.augmentation is None:
            return self
        if self.images == "stream" and self.augmentation.variants is not None:
            raise ValueError(
                f"augmentation.variants = {self.augmentation.variants} is of stored images; with images: stream each "
                "sample is changed anew every time that it is shown; leave variants out"
            )
        if self.images == "store" and self.augmentation.variants is None:
            raise ValueError("augmentation.variants = null goes with images: stream; give a number")
        return self

    @field_validator("train", "val_ind", "val_ood")
    @classmethod
    def _weights_are_those_of_a_mixture(cls, source: SplitSource | None) -> SplitSource | None:
        if any(of_split.weight is not None for of_split in sources_of(source) if of_split is source):
            raise ValueError("weight is a share in kind: mixture; leave it out")
        return source

    @property
    def moments(self) -> int:
        """The moments whose images a prompt has."""
        return self.history if self.history_deltas is None else len(self.history_deltas)

    @property
    def as_recorded(self) -> RecordedSpec:
        """`recorded`, and where that says nothing, what the settings of the training episodes say."""
        known = self.recorded.model_dump(exclude_none=True)
        if isinstance(self.train, LiberoSource):
            rotation = 180 if self.train.images == "rotated" else 0
            known = {"rotation": rotation, "prompt": self.train.prompt, "gripper": "raw"} | known
        return RecordedSpec(**known)


def sources_of(split: SplitSource | None) -> tuple[Source, ...]:
    """The datasets of a split that have episodes: those of a mixture, or the only one."""
    if split is None or isinstance(split, RynnVlaRecordsSource):
        return ()
    return split.sources if isinstance(split, MixtureSpec) else (split,)
