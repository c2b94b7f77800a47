"""The contract of `vlatrack.Backbone` as tests that any backbone can run against itself.

Subclass `BackboneContract` as a class `Test…` in a test file, say how a small one is made, and run pytest.

Legend: B rows, S positions, D width.
"""

import json
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vlatrack.models.backbones.base import Backbone, Geometry

ROWS, LENGTH, PLACE = 2, 12, 4


class BackboneContract(ABC):
    """What every backbone must do."""

    tolerance = 1e-5
    """How much hidden states may differ that should be the same."""

    @abstractmethod
    def make(self) -> Backbone:
        """A small backbone, for rows of at least 64 positions; its weights are random."""

    def rebuild(self, geometry: Geometry) -> Backbone:
        """The backbone of a checkpoint that holds this geometry; by default its class, called with it."""
        return type(self.make())(**geometry)

    def test_hidden_states_and_output_layer_have_its_width_and_vocabulary(self) -> None:
        backbone = self._new()
        hidden = backbone(_ids(backbone), _causal())
        assert hidden.shape == (ROWS, LENGTH, backbone.width)
        assert hidden.isfinite().all()
        rows, width = backbone.output_layer.shape
        assert width == backbone.width
        assert rows >= backbone.layout.vocabulary_size, "the output layer lacks ids of the layout"

    def test_a_position_that_may_not_be_attended_to_changes_no_other(self) -> None:
        backbone = self._new()
        ids, alone = _ids(backbone), _causal()
        alone[:, :, PLACE] = False
        alone[:, PLACE, PLACE] = True
        for mask, may_change in ((_causal(), range(PLACE, LENGTH)), (alone, [PLACE])):
            changed = self._differing(backbone(ids, mask), backbone(_changed(backbone, ids), mask))
            assert set(changed) <= set(may_change), f"position {PLACE} reaches {changed}, against the mask"

    def test_a_position_that_is_attended_to_matters_and_so_does_its_place(self) -> None:
        backbone = self._new()
        ids = _ids(backbone)
        before = backbone(ids, _causal())
        assert LENGTH - 1 in self._differing(before, backbone(_changed(backbone, ids), _causal()))
        swapped = ids.clone()
        swapped[:, [1, PLACE]] = ids[:, [PLACE, 1]]
        assert LENGTH - 1 in self._differing(before, backbone(swapped, _causal())), "it knows no order of its tokens"

    def test_each_row_is_computed_by_itself_and_the_same_each_time(self) -> None:
        backbone = self._new()
        ids = _ids(backbone)
        both = backbone(ids, _causal())
        assert self._differing(both, backbone(ids, _causal())) == []
        assert self._differing(both[1:], backbone(ids[1:], _causal()[1:])) == []

    def test_blocks_are_in_order_its_layers_and_every_trained_weight_has_a_gradient(self) -> None:
        backbone = self._new().train()
        assert len(backbone.blocks) > 0, "gradient checkpointing and sharding go by the blocks"
        own = {id(parameter) for parameter in backbone.parameters()}
        assert {id(parameter) for parameter in backbone.blocks.parameters()} <= own
        logits = backbone(_ids(backbone), _causal()) @ backbone.output_layer.t()
        logits.logsumexp(-1).square().mean().backward()
        without = [name for name, weight in backbone.named_parameters() if weight.requires_grad and weight.grad is None]
        assert without == [], "parameters that nothing trains"

    def test_its_geometry_and_weights_make_the_same_backbone_again(self) -> None:
        backbone = self._new()
        again = self.rebuild(json.loads(json.dumps(dict(backbone.geometry())))).eval()
        again.load_state_dict(backbone.state_dict())
        assert again.layout == backbone.layout
        ids = _ids(backbone)
        assert self._differing(backbone(ids, _causal()), again(ids, _causal())) == []

    def test_positions_that_follow_kept_keys_are_those_of_the_whole_row(self) -> None:
        backbone = self._new()
        if not backbone.keeps_keys:
            return
        ids, mask, places = _ids(backbone), _causal(), torch.arange(LENGTH).expand(ROWS, LENGTH)
        first, kept = backbone.forward_further(ids[:, :PLACE], mask[:, :PLACE, :PLACE], places[:, :PLACE], None)
        rest, _ = backbone.forward_further(ids[:, PLACE:], mask[:, PLACE:], places[:, PLACE:], kept)
        assert self._differing(backbone(ids, mask), torch.cat([first, rest], dim=1)) == []

    def _new(self) -> Backbone:
        torch.manual_seed(0)
        return self.make().eval()

    def _differing(self, one: Tensor, two: Tensor) -> list[int]:
        """The positions at which hidden states [B, S, D] differ."""
        assert one.shape == two.shape
        distance = (one - two).abs().amax(dim=(0, 2))
        return [int(place) for place in (distance > self.tolerance).nonzero()]


def _ids(backbone: Backbone) -> Tensor:
    """Different ids [B, S] of the whole vocabulary."""
    return torch.randperm(backbone.layout.vocabulary_size, generator=torch.Generator().manual_seed(1))[
        : ROWS * LENGTH
    ].reshape(ROWS, LENGTH)


def _changed(backbone: Backbone, ids: Tensor) -> Tensor:
    changed = ids.clone()
    changed[:, PLACE] = (changed[:, PLACE] + 1) % backbone.layout.vocabulary_size
    return changed


def _causal() -> Tensor:
    """The mask [B, S, S]: each position sees itself and those before it."""
    return torch.ones(ROWS, LENGTH, LENGTH, dtype=torch.bool).tril()
