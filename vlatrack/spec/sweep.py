"""A sweep's YAML as frozen models: which settings are tried, by what they are judged, and how often."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from vlatrack.spec.base import Model, Name

LARGEST_GRID = 100_000
Setting = str | int | float | bool | None | list[JsonValue] | tuple[JsonValue, ...] | dict[str, JsonValue]


class Dimension(Model):
    """The values that one setting may take: an interval, the same on a logarithmic scale, or a list."""

    log: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None, description="lowest and highest value; as many between 1e-5 and 1e-4 as between 1e-4 and 1e-3"
    )
    range: tuple[float, float] | None = Field(None, description="lowest and highest value")
    step: PositiveFloat | None = Field(None, description="with range: distance of the values, from the lowest on")
    choices: tuple[Setting, ...] | None = Field(None, min_length=1, description="the values themselves, of any type")

    @model_validator(mode="after")
    def _is_one_of_three(self) -> Self:
        given = [name for name in ("log", "range", "choices") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of log, range and choices, not {' and '.join(given) or 'none of them'}")
        if self.step is not None and self.range is None:
            raise ValueError(f"step goes with range, not with {given[0]}")
        bounds = self.log or self.range
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError(f"{given[0]}: {bounds[0]:g} is not below {bounds[1]:g}; write the lowest value first")
        if self.choices is not None:
            shown = [repr(choice) for choice in self.choices]
            if twice := next((choice for number, choice in enumerate(shown) if choice in shown[:number]), None):
                raise ValueError(f"choices: {twice} is listed twice; list it once")
        return self


class Objective(Model):
    """A metric by which configurations are judged; whether lower or higher is better, its declaration says."""

    metric: str = Field(description="full name, such as val_ind_loss_ct")
    take: Literal["last", "best"] = Field("last", description="its value at the end of a run, or the best one in it")


class MedianPruner(Model):
    """Ends a trial whose best value so far is worse than the median of the others after as many epochs."""

    kind: Literal["median"]
    metric: str | None = Field(None, description="what it watches; null: the first objective")
    startup_trials: NonNegativeInt = Field(5, description="complete trials before the first is pruned")
    warmup_epochs: NonNegativeInt = Field(0, description="epochs of each trial in which it is not pruned")


class HalvingPruner(Model):
    """Asynchronous successive halving: only the best 1 / reduction_factor of the trials pass each rung."""

    kind: Literal["halving"]
    metric: str | None = Field(None, description="what it watches; null: the first objective")
    min_epochs: PositiveInt = Field(1, description="epochs up to the first rung")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(4, description="each rung is so many times later")


class HyperbandPruner(Model):
    """Successive halving with several first rungs, for a metric of which it is unknown how early it tells anything."""

    kind: Literal["hyperband"]
    metric: str | None = Field(None, description="what it watches; null: the first objective")
    min_epochs: PositiveInt = Field(1, description="epochs up to the earliest first rung")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(3, description="each rung is so many times later")


Pruner = Annotated[MedianPruner | HalvingPruner | HyperbandPruner, Field(discriminator="kind")]


class SamplerSpec(Model):
    """How the next configuration is chosen."""

    kind: Literal["tpe", "random", "grid"] = Field(
        "tpe", description="tpe: where good ones have been; random; grid: every combination of choices and steps"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="with one worker the same seed gives the same configurations"
    )
    startup_trials: NonNegativeInt = Field(10, description="of tpe: configurations that are chosen at random first")


class SweepSpec(Model):
    """A search over settings of one experiment."""

    name: Name
    experiment: str = Field(min_length=1, description="the experiment's YAML file, from the folder of this file")
    overrides: dict[str, Setting] = Field({}, description="settings of every trial, such as train.epochs: 2")
    space: dict[str, Dimension] = Field(min_length=1, description="the settings that are tried, by their paths")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(
        (),
        description="each configuration is trained with each of them and judged by the mean; []: the experiment's",
    )
    objectives: tuple[Objective, ...] = Field(min_length=1, description="several: the Pareto front is sought")
    pruner: Pruner | None = Field(None, description="ends trials that promise little; null: none")
    sampler: SamplerSpec = SamplerSpec()
    trials: PositiveInt | None = Field(None, description="configurations to try; null: all of a grid")
    parallel: PositiveInt = Field(1, description="trials that a call of `vlatrack sweep` trains side by side")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        metrics = [objective.metric for objective in self.objectives]
        for where, values in (("seeds", self.seeds), ("objectives", metrics)):
            if twice := next((value for number, value in enumerate(values) if value in values[:number]), None):
                raise ValueError(f"{where}: {twice} is listed twice; list it once")
        for path in self.space:
            if path in self.overrides:
                raise ValueError(f"overrides.{path}: is a dimension of the space as well; remove one of the two")
        if "seed" in self.space or ("seed" in self.overrides and self.seeds):
            raise ValueError("seeds: is where seeds are listed; take seed out of space and overrides")
        if self.sampler.kind == "grid":
            for path, dimension in self.space.items():
                if dimension.choices is None and dimension.step is None:
                    raise ValueError(f"space.{path}: sampler.kind = grid needs choices, or a range with a step")
        elif self.trials is None:
            raise ValueError(f"trials: how many is required with sampler.kind = {self.sampler.kind}")
        return self

    @property
    def pruned_by(self) -> str | None:
        """The metric that the pruner watches; None without a pruner."""
        return None if self.pruner is None else self.pruner.metric or self.objectives[0].metric
