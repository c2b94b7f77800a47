"""vlatrack.testing's contracts of loss terms and backbones: what ships passes, and what is wrong does not."""

from collections.abc import Callable

import pytest
import torch
from recipes import module_of

from vlatrack.metrics.losses import LossMetric
from vlatrack.models.backbones.base import Backbone, BackboneFactory, Geometry
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonFactory
from vlatrack.models.losses.base import LossTerm
from vlatrack.models.losses.terms import documented_terms
from vlatrack.testing.backbone_contract import BackboneContract
from vlatrack.testing.loss_contract import LAYOUT, LossTermContract

SCRATCH = {"preset": "tiny", "checkpoint": None, "max_seq_len": 64, "residual_dropout": 0.0}


class OfFactory(BackboneContract):
    factory: BackboneFactory

    def make(self) -> Backbone:
        return self.factory.open().build()

    def rebuild(self, geometry: Geometry) -> Backbone:
        return self.factory.from_geometry(geometry)


class TestChameleon(OfFactory):
    factory = ChameleonFactory(**SCRATCH, sizes={}, tokenizer=None)


class TestLlama(OfFactory):
    factory = CausalLMFactory(**SCRATCH, family="llama", sizes={})


class TestQwen2(OfFactory):
    factory = CausalLMFactory(**SCRATCH, family="qwen2", sizes={})


class TestQwen3(OfFactory):
    factory = CausalLMFactory(**SCRATCH, family="qwen3", sizes={"tie_word_embeddings": True})


class Documented(LossTermContract):
    is_documented = True
    number: int

    def make(self) -> LossTerm:
        return documented_terms(LAYOUT, (self.horizon, self.action_dim), image_token_weight=0.04)[self.number]


class TestCloss(Documented):
    number = 0


class TestLossCt(Documented):
    number = 1


class TestZLoss(Documented):
    number = 2


def failures(contract: BackboneContract | LossTermContract) -> set[str]:
    failed = set()
    for name in (name for name in dir(contract) if name.startswith("test_")):
        try:
            getattr(contract, name)()
        except Exception:
            failed.add(name)
    return failed


TERM = module_of("write-a-loss-term.md", "my_terms.py").ChunkSmoothness


class MeanOfTheBatch(TERM):
    def total(self, inputs):
        return super().total(inputs) / self.count(inputs.batch)


class CountsByValue(TERM):
    def count(self, batch):
        return float((batch.targets > 0).sum())


class Detached(TERM):
    def total(self, inputs):
        return super().total(inputs).detach()


class NeedsActions(TERM):
    def count(self, batch):
        return max(1, super().count(batch))


class NameOfAnother(TERM):
    metric = LossMetric("grad_norm", "the name of a metric")


@pytest.mark.parametrize(
    ("term", "caught_by"),
    [
        (MeanOfTheBatch, "test_count_and_total_of_a_batch_are_the_sums_of_those_of_its_parts"),
        (CountsByValue, "test_its_count_reads_shapes_and_numbers_alone"),
        (Detached, "test_its_total_is_finite_and_has_a_finite_gradient"),
        (NeedsActions, "test_batches_without_actions_and_without_images_are_counted_or_left_out"),
        (NameOfAnother, "test_its_name_is_free_and_can_be_logged"),
    ],
)
def test_a_wrong_loss_term_is_found(term: type[LossTerm], caught_by: str) -> None:
    class Contract(LossTermContract):
        def make(self) -> LossTerm:
            return term(weight=1.0)

    assert caught_by in failures(Contract())


BACKBONE = module_of("write-a-backbone.md", "my_backbone.py").SmallDecoder


class MaskTheWrongWay(BACKBONE):
    def forward(self, input_ids, mask):
        return super().forward(input_ids, ~mask | torch.eye(mask.shape[1], dtype=torch.bool))


class SeesAll(BACKBONE):
    def forward(self, input_ids, mask):
        return super().forward(input_ids, torch.ones_like(mask))


class NoOrder(BACKBONE):
    def forward(self, input_ids, mask):
        with torch.no_grad():
            self.positions.weight.zero_()
        return super().forward(input_ids, mask)


class ForgetsItsSize(BACKBONE):
    def geometry(self):
        return {"max_seq_len": 64}


class LeftOver(BACKBONE):
    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.unused = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("kind", "caught_by"),
    [
        (MaskTheWrongWay, "test_a_position_that_may_not_be_attended_to_changes_no_other"),
        (SeesAll, "test_a_position_that_may_not_be_attended_to_changes_no_other"),
        (NoOrder, "test_a_position_that_is_attended_to_matters_and_so_does_its_place"),
        (ForgetsItsSize, "test_its_geometry_and_weights_make_the_same_backbone_again"),
        (LeftOver, "test_blocks_are_in_order_its_layers_and_every_trained_weight_has_a_gradient"),
    ],
)
def test_a_wrong_backbone_is_found(kind: Callable[..., Backbone], caught_by: str) -> None:
    class Contract(BackboneContract):
        def make(self) -> Backbone:
            return kind(max_seq_len=64, size=16, layers=1)

    assert caught_by in failures(Contract())
