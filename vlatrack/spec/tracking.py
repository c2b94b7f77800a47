"""The trackers in an experiment's YAML."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from vlatrack.spec.base import CustomTarget, Model, Name, Options

Naming = Annotated[
    Literal["documented", "sections"],
    Field(
        description="documented: the documented metrics by their names, `train_closs`, and all others in groups, "
        "`speed/train_mfu`; sections: by split, `train/closs`"
    ),
]


CopyCheckpoints = Annotated[
    bool,
    Field(description="copy the weights of the best checkpoint there, however large; false: their path and SHA-256"),
]
CopyUpToMb = Annotated[
    NonNegativeInt, Field(description="larger files of other artifacts stay here too, known by path and SHA-256")
]


class MlflowBackend(Model):
    """MLflow, on a server or on SQLite; a login comes from MLFLOW_TRACKING_USERNAME and _PASSWORD."""

    kind: Literal["mlflow"]
    naming: Naming = "documented"
    tracking_uri: str | None = Field(
        None, description="server or database; null: MLFLOW_TRACKING_URI, or else SQLite inside the runs folder"
    )
    experiment: str | None = Field(None, description="null: MLFLOW_EXPERIMENT_NAME, or else this experiment's name")
    copy_checkpoints: CopyCheckpoints = False
    copy_up_to_mb: CopyUpToMb = 100


class WandbBackend(Model):
    """Weights & Biases; the key comes from WANDB_API_KEY or `wandb login`."""

    kind: Literal["wandb"]
    naming: Naming = "documented"
    project: str | None = Field(None, description="W&B project; null: WANDB_PROJECT, or else vlatrack")
    entity: str | None = Field(None, description="W&B user or team; null: WANDB_ENTITY, or else the account's default")
    mode: Literal["auto", "online", "offline"] = Field("auto", description="auto: online if a key is configured")
    copy_checkpoints: CopyCheckpoints = False
    copy_up_to_mb: CopyUpToMb = 100


class TensorboardBackend(Model):
    """TensorBoard: event files in the run directory, needs `vlatrack[tensorboard]`."""

    kind: Literal["tensorboard"]
    naming: Naming = "documented"


class CustomBackend(Model):
    """Your own tracker: a class with the methods of vlatrack.tracking.backends.base.Backend."""

    kind: Literal["custom"]
    target: CustomTarget
    naming: Naming = "documented"
    options: Options = {}


Backend = Annotated[MlflowBackend | WandbBackend | TensorboardBackend | CustomBackend, Field(discriminator="kind")]


def _of_name(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


BackendOrName = Annotated[
    Backend,
    BeforeValidator(_of_name, json_schema_input_type=Backend | Literal["mlflow", "wandb", "tensorboard"]),
]
"""A tracker whose options are all as by default may be written as its name alone: ``[mlflow, wandb]``."""


class TrackingSpec(Model):
    """Where metrics go, and how often."""

    backends: tuple[BackendOrName, ...] = Field(
        (MlflowBackend(kind="mlflow"),),
        description="trackers that get every record, by name or with options; []: only the journal",
    )
    group: Name | None = Field(
        None, description="shows runs of a sweep together: children of one run in MLflow, a group in W&B"
    )
    log_every: PositiveInt = Field(10, description="optimiser steps between two records")
    system_every_s: PositiveFloat | None = Field(
        15.0, description="seconds between two records of processor, memory and GPUs; null: none"
    )
    figures: bool = Field(True, description="draw all metrics when a run ends; false: it ends some seconds sooner")
