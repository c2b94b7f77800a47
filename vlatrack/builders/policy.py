"""From the spec, or from a checkpoint, to a policy: its backbone, losses, metrics and initial weights."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

import torch

from vlatrack.builders.optimizer import build_groups, group_rates
from vlatrack.errors import CheckpointError, SpecError
from vlatrack.metrics.losses import LossMetric
from vlatrack.metrics.schema import SIMULATION, MetricSchema
from vlatrack.models.backbones.activations import keep_activations, offload_activations
from vlatrack.models.backbones.adapter import Adapter, add_adapter
from vlatrack.models.backbones.base import Backbone, BackboneFactory, BackboneSource
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory
from vlatrack.models.backbones.custom import custom_factory
from vlatrack.models.freezing import freeze
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.base import LossTerm
from vlatrack.models.losses.terms import check_names, documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.models.storage import store_parameters
from vlatrack.plugins import load_plugin, make_plugin
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.identity import Scalar, flatten
from vlatrack.spec.load import load_spec
from vlatrack.spec.migrate import migrate_flat
from vlatrack.spec.policy import CausalLMSpec, ChameleonSpec, CustomBackboneSpec, CustomLoss
from vlatrack.tokens.bins import Bins
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer, TextTokenizer, load_text_tokenizer
from vlatrack.training.checkpoint.policy import PolicyRecord, read_policy

BACKBONES, LOSSES = "vlatrack.backbones", "vlatrack.losses"
"""Entry point groups through which other packages offer backbones and loss terms."""


def backbone_factory(spec: ExperimentSpec, *, with_weights: bool = True) -> BackboneFactory:
    """The factory of the backbone that the spec names.

    Args:
        with_weights: false for the sizes alone: pretrained weights need not be there, and are not copied.

    Raises:
        SpecError: a custom backbone cannot be loaded.
    """
    backbone = spec.backbone
    match backbone:
        case ChameleonSpec():
            return ChameleonFactory(
                preset=backbone.preset,
                sizes={} if backbone.sizes is None else backbone.sizes.model_dump(exclude_none=True),
                checkpoint=backbone.checkpoint,
                tokenizer=spec.tokenizer.checkpoint,
                residual_dropout=backbone.residual_dropout,
                max_seq_len=backbone.max_seq_len,
                with_weights=with_weights,
            )
        case CausalLMSpec():
            return CausalLMFactory(
                family=backbone.family,
                preset=backbone.preset,
                sizes=backbone.sizes.model_dump(exclude_none=True),
                checkpoint=backbone.checkpoint,
                residual_dropout=backbone.residual_dropout,
                max_seq_len=backbone.max_seq_len,
                with_weights=with_weights,
            )
        case CustomBackboneSpec():
            try:
                target = load_plugin(backbone.target, BACKBONES)
            except SpecError as error:
                raise SpecError(f"backbone.target: {error}") from error
            return custom_factory(target, backbone.options, max_seq_len=backbone.max_seq_len)
        case _:
            assert_never(backbone)


def build_losses(spec: ExperimentSpec, layout: TokenLayout) -> tuple[LossTerm, ...]:
    """The documented loss terms, then the custom ones.

    Raises:
        VlatrackError: a term cannot be loaded, is not a loss term, or has a name that is taken.
    """
    head, loss = spec.action_head, spec.loss
    documented = documented_terms(
        layout,
        (head.time_horizon, head.action_dim),
        loss_ct_weights=loss.loss_ct_weights,
        z_loss_weight=loss.z_loss_weight,
        image_token_weight=loss.image_token_weight,
        ct_target=loss.ct_target,
    )
    custom = [_custom_loss(term, f"loss.terms.{number}") for number, term in enumerate(loss.terms)]
    check_names(custom)
    return (*documented, *custom)


def _custom_loss(spec: CustomLoss, place: str) -> LossTerm:
    try:
        term = make_plugin(spec.target, group=LOSSES, options={"weight": spec.weight, **spec.options})
    except SpecError as error:
        raise SpecError(f"{place}: {error}") from error
    if not isinstance(term, LossTerm):
        raise SpecError(f"{place}: {spec.target} is not a LossTerm; derive the class from vlatrack.LossTerm")
    if not isinstance(getattr(term, "metric", None), LossMetric):
        raise SpecError(f"{place}: {spec.target} lacks its name; give the class metric = LossMetric(name, meaning)")
    return term


def build_schema(spec: ExperimentSpec, simulated: Collection[str] = ()) -> MetricSchema:
    """Every metric that a run of the spec can log.

    Args:
        simulated: what its evaluations in simulators measure.

    Raises:
        VlatrackError: a loss term cannot be used, or `train.checkpoint.best_metric` cannot decide what is best.
    """
    head = spec.action_head
    schema = MetricSchema.for_experiment(
        horizon=head.time_horizon,
        action_dim=head.action_dim,
        losses={term.metric: term.weight for term in build_losses(spec, TokenLayout())},
        groups=group_rates(spec),
        simulated=simulated,
    )
    for place, metric in spec.deciding_metrics.items():
        if metric.startswith(SIMULATION):  # load_closed_loops checks these
            continue
        if problem := schema.why_not_best(metric):
            raise SpecError(f"{place}: {problem}")
    return schema


@dataclass(frozen=True)
class StoredPolicy:
    """A policy in a checkpoint, with its spec at the time the checkpoint was written."""

    record: PolicyRecord
    spec: ExperimentSpec
    settings: Mapping[str, Scalar]  # the flat spec, with the keys of that time

    @classmethod
    def open(cls, checkpoint: Path, settings_at_start: Mapping[str, Scalar]) -> "StoredPolicy":
        """The policy of a verified checkpoint.

        Args:
            settings_at_start: the flat settings that its run began with, for checkpoints of format 1, which hold none.

        Raises:
            VlatrackError: the checkpoint's description of its policy is damaged or missing.
        """
        record = read_policy(checkpoint)
        spec = load_spec(record.spec_file, stored=True)
        settings = flatten(spec)
        if record.geometry is None and settings_at_start:
            settings = migrate_flat(settings_at_start) | {"tokenizer.bins": record.bins}
        return cls(record, spec, settings)

    def source(self, spec: ExperimentSpec) -> BackboneSource:
        """The stored backbone, with the dropout and other settings of ``spec``; reads no pretrained weights."""
        if self.record.geometry is None:
            fresh = backbone_factory(spec).open()
            return BackboneSource(build=fresh.build, text=fresh.text)
        assert self.record.text_tokenizer is not None, "a checkpoint with a geometry has a text tokenizer"
        build = partial(backbone_factory(spec).from_geometry, self.record.geometry)
        return BackboneSource(build=build, text=load_text_tokenizer(self.record.text_tokenizer))


def build_policy(
    spec: ExperimentSpec, source: BackboneSource, initialise: Callable[[VlaPolicy], None] = lambda _: None
) -> VlaPolicy:
    """The policy with its initial weights: random from the seed, or pretrained.

    Args:
        initialise: called before the policy gets its adapters, such as to load weights of one without them.

    Raises:
        SpecError: `optim.groups` names parameters that it does not have.
        CheckpointError: the pretrained weights are damaged, or of another geometry.
        SpecError: adapters or frozen parameters are asked for by names that the policy does not have.
    """
    torch.manual_seed(spec.seed)
    head, backbone = spec.action_head, source.build()
    _check_vocabulary(backbone, source.text or ByteTokenizer(backbone.layout))
    width = max(head.heads, round(backbone.width * head.reduced_ratio / head.heads) * head.heads)
    policy = VlaPolicy(
        backbone,
        ActionHead(
            backbone_width=backbone.width,
            time_horizon=head.time_horizon,
            action_dim=head.action_dim,
            reduced_width=width,
            encoder_layers=head.encoder_layers,
            heads=head.heads,
            dropout=head.dropout,
            mask_padding=head.mask_padding,
        ),
        layout=backbone.layout,
        bins=Bins(spec.tokenizer.bins),
        losses=build_losses(spec, backbone.layout),
    )
    if source.weights is not None:
        source.weights.copy_into(policy)
    initialise(policy)
    if (adapter := adapter_of(spec)) is not None:
        add_adapter(backbone, adapter)
    freeze(policy, spec.train.freeze)
    if spec.storage.parameters == "bf16":
        store_parameters(policy, torch.bfloat16)
    build_groups(spec, policy)  # now rather than after the frames have been encoded
    keep_activations(backbone.blocks, spec.train.memory.keep)
    if spec.train.memory.offload == "activations":
        offload_activations(backbone)
    return policy


def adapter_of(spec: ExperimentSpec) -> Adapter | None:
    """The adapter that a spec asks for."""
    if isinstance(spec.backbone, CustomBackboneSpec) or spec.backbone.adapter is None:
        return None
    return Adapter(**spec.backbone.adapter.model_dump())


def _check_vocabulary(backbone: Backbone, text: TextTokenizer) -> None:
    rows, needed = len(backbone.output_layer), max(backbone.layout.state_end + 1, text.vocabulary_size)
    if needed > rows:
        raise CheckpointError(
            f"backbone: its vocabulary has {rows} ids, but image, action, state and text ids go up to {needed - 1}; "
            "it needs a larger one, or another tokenizer"
        )
