"""The experiment YAML as frozen models; each field states its meaning and range.

Nothing in this room imports torch, so that a spec is validated in well under a second.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from vlatrack.metrics.schema import SIMULATION, MetricSchema
from vlatrack.spec.base import Model, Name
from vlatrack.spec.data import DataSpec, RynnVlaRecordsSource
from vlatrack.spec.health import HealthSpec
from vlatrack.spec.policy import (
    ActionHeadSpec,
    BackboneSpec,
    CustomBackboneSpec,
    ExplicitRanges,
    LossSpec,
    TokenizerSpec,
)
from vlatrack.spec.tracking import TrackingSpec
from vlatrack.spec.training import _LARGEST_BF16_BETA, EvaluateSpec, OptimSpec, Storage, TrainSpec


class ExperimentSpec(Model):
    """One experiment: everything that decides its result, and where its metrics go."""

    name: Name
    init_from: str | None = Field(
        None,
        pattern=r"^.+?(@[A-Za-z0-9-]+)?$",
        description="RUN or RUN@CHECKPOINT (last, best or step-…), or the folder of an exported policy: start with its "
        "weights and tokenizers",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of weights, data order and dropout")
    backbone: BackboneSpec
    action_head: ActionHeadSpec = ActionHeadSpec()
    tokenizer: TokenizerSpec = TokenizerSpec()
    loss: LossSpec = LossSpec()
    data: DataSpec
    optim: OptimSpec = OptimSpec()
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    tracking: TrackingSpec = TrackingSpec()
    health: HealthSpec = HealthSpec()

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        ranges, head = self.tokenizer.statistics, self.action_head
        if isinstance(ranges, ExplicitRanges) and len(ranges.action_low) != head.action_dim:
            raise ValueError(
                f"tokenizer.statistics.action_low has {len(ranges.action_low)} numbers, "
                f"action_head.action_dim is {head.action_dim}"
            )
        if self.data.use_state and self.tokenizer.bins > 498:
            raise ValueError(f"tokenizer.bins = {self.tokenizer.bins}: with data.use_state the layout has room for 498")
        adapter = None if isinstance(self.backbone, CustomBackboneSpec) else self.backbone.adapter
        if adapter is not None and self.train.memory.parameters == "bf16":
            raise ValueError(
                "train.memory.parameters = bf16, but adapters are trained in fp32; leave it out, and set "
                "backbone.adapter.base: bf16 to store what they adapt in bf16"
            )
        if adapter is not None and adapter.base == "bf16" and self.train.precision == "fp32":
            raise ValueError("backbone.adapter.base = bf16 needs train.precision: bf16 or fp8; set that, or base: fp32")
        if adapter is not None and adapter.base == "4bit" and self.train.precision != "bf16":
            raise ValueError(
                f"backbone.adapter.base = 4bit multiplies in bf16, not in {self.train.precision}; set train.precision "
                "to bf16, or base to bf16 or fp32"
            )
        if adapter is not None and adapter.base == "4bit" and self.train.memory.offload == "parameters":
            raise ValueError(
                "train.memory.offload = parameters moves weights between host and GPU, where backbone.adapter.base = "
                "4bit keeps them; choose one of the two"
            )
        if self.optim.min_lr > self.optim.lr:
            raise ValueError(f"optim.min_lr = {self.optim.min_lr:g} is above optim.lr = {self.optim.lr:g}")
        if (self.optim.warmup_epochs or 0) >= self.train.epochs:
            raise ValueError(
                f"optim.warmup_epochs = {self.optim.warmup_epochs:g} is not below train.epochs = {self.train.epochs}: "
                "the learning rate would never reach optim.lr"
            )
        decay = (self.optim.warmup_epochs or 0) + (self.optim.decay_epochs or 0)
        if decay > self.train.epochs:
            raise ValueError(
                f"optim.decay_epochs = {self.optim.decay_epochs:g} and the warm-up are longer than train.epochs = "
                f"{self.train.epochs}; shorten them, or train longer"
            )
        return self

    @model_validator(mode="after")
    def _token_rows_tell_enough(self) -> Self:
        """Rows hold the bins of numbers and the codes of images, but not what these mean."""
        for name in ("train", "val_ind", "val_ood"):
            if not isinstance(getattr(self.data, name), RynnVlaRecordsSource):
                continue
            ranges, rows = self.tokenizer.statistics, f"data.{name} has finished token rows"
            if self.data.images == "stream":
                raise ValueError(f"data.images = stream: {rows}, whose images are codes already; set it to store")
            if not isinstance(ranges, ExplicitRanges) or (self.data.use_state and not ranges.state_low):
                needed = "action_low and action_high" + (", state_low and state_high" if self.data.use_state else "")
                raise ValueError(
                    f"tokenizer.statistics: {rows}, of which the ranges cannot be computed; give {needed}, those that "
                    "they were tokenised with"
                )
            images = (self.tokenizer.checkpoint, self.init_from, getattr(self.backbone, "checkpoint", None))
            if not any(images) and not isinstance(self.backbone, CustomBackboneSpec):
                raise ValueError(
                    f"tokenizer.checkpoint: {rows}, whose image codes a policy has to make itself when it acts; give "
                    "the Chameleon with the image tokenizer that made them"
                )
            if name == "train" and self.data.augmentation is not None:
                raise ValueError(f"data.augmentation: {rows}, whose images are codes already; leave it out")
            if self.loss.ct_target == "raw":
                raise ValueError(f"loss.ct_target = raw, but {rows} and no raw actions; set it to tokens")
        return self

    @property
    def storage(self) -> Storage:
        """What parameters and optimiser states are stored in."""
        memory = self.train.memory
        whole_7b = self.backbone.kind == "chameleon" and self.backbone.preset == "7b" and self.backbone.adapter is None
        parameters = memory.parameters or ("bf16" if whole_7b and self.train.precision != "fp32" else "fp32")
        rounding = memory.rounding or "stochastic"
        assert rounding != "nearest", "refused"
        return Storage(parameters, rounding if parameters == "bf16" else None, memory.optimizer_states or parameters)

    @model_validator(mode="after")
    def _stored_numbers_can_be_trained(self) -> Self:
        optim, memory = self.optim, self.train.memory
        if memory.rounding == "nearest":
            raise ValueError(
                "train.memory.rounding: nearest drops every update below half a bf16 ulp, so that small learning rates "
                "train nothing (a comparable fine-tuning ended with a 20.4 % higher loss); use stochastic or kahan"
            )
        storage = self.storage
        if storage.parameters == "fp32" and memory.rounding is not None:
            raise ValueError(
                f"train.memory.rounding = {memory.rounding}, but the parameters are fp32; set it to null, or "
                "train.memory.parameters to bf16"
            )
        if storage.parameters == "bf16" and self.train.precision == "fp32":
            raise ValueError(
                "train.precision = fp32 cannot compute with bf16 parameters; set it to bf16, or "
                "train.memory.parameters to fp32"
            )
        if storage.rounding == "kahan" and storage.optimizer_states == "8bit":
            raise ValueError(
                "train.memory.optimizer_states: 8bit goes with stochastic rounding or fp32 parameters, not with kahan, "
                "whose remainder alone takes as much as it saves; use bf16"
            )
        if storage.optimizer_states == "bf16" and max(optim.betas) > _LARGEST_BF16_BETA:
            raise ValueError(
                f"optim.betas = {', '.join(map(str, optim.betas))}: with train.memory.optimizer_states = bf16 at most "
                f"{_LARGEST_BF16_BETA:g}, else an average changes by less than bf16 resolves; lower it, or use fp32"
            )
        if optim.kind == "muon" and (storage.parameters, storage.optimizer_states) != ("fp32", "fp32"):
            raise ValueError(
                "optim.kind = muon rounds to nearest, so it needs train.memory.parameters and "
                "train.memory.optimizer_states = fp32"
            )
        if optim.kind == "muon" and memory.offload == "parameters":
            raise ValueError(
                "optim.kind = muon multiplies matrices in its step, which train.memory.offload: parameters would do on "
                "the CPU, for minutes; use adamw, or another offload"
            )
        return self

    @model_validator(mode="after")
    def _best_metric_can_decide(self) -> Self:
        schema = MetricSchema.for_experiment(
            horizon=self.action_head.time_horizon, action_dim=self.action_head.action_dim
        )
        for place, metric in self.deciding_metrics.items():
            if metric.startswith(SIMULATION):  # whether there is one of that name is known from the evaluation's file
                if not self.evaluate.closed_loops:
                    raise ValueError(f"{place}: {metric} is what evaluate.closed_loop measures, and there is none")
                continue
            # An unknown name may belong to a custom loss term, which only a run loads.
            if (problem := schema.why_not_best(metric)) and (metric in schema or not self.loss.terms):
                raise ValueError(f"{place}: {problem}")
        return self

    @property
    def deciding_metrics(self) -> dict[str, str]:
        """The metrics that say which checkpoint is best and when the training ends early, by their settings."""
        decides = {"train.checkpoint.best_metric": self.train.checkpoint.best_metric}
        if (early := self.train.early_stopping) is not None and early.metric is not None:
            decides["train.early_stopping.metric"] = early.metric
        return decides

    @model_validator(mode="after")
    def _simulated_checkpoints_are_saved(self) -> Self:
        saved = self.train.checkpoint.every_epochs
        for number, closed_loop in enumerate(self.evaluate.closed_loops):
            if closed_loop.every_epochs % saved:
                of = "" if len(self.evaluate.closed_loops) == 1 else f".{number}"
                raise ValueError(
                    f"evaluate.closed_loop{of}.every_epochs = {closed_loop.every_epochs}, but a checkpoint to evaluate "
                    f"is saved every {saved} epochs (train.checkpoint.every_epochs); make it a multiple of that"
                )
        return self
