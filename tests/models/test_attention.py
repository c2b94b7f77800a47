"""FlexAttention sees what the dense mask allows."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from vlatrack.errors import BackboneError
from vlatrack.models.attention import attention_mask, block_mask
from vlatrack.models.backbones.base import Backbone
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.batch import collate
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence
from vlatrack.training.compilation import compile_blocks

LAYOUT = TokenLayout()
Rows = list[TokenSequence]


@pytest.mark.parametrize("length_multiple", [1, 64])
def test_the_block_mask_is_the_dense_mask(rows: Rows, length_multiple: int) -> None:
    ids = collate(rows, LAYOUT, length_multiple=length_multiple).input_ids
    dense = attention_mask(ids, LAYOUT)
    blocks = block_mask(ids, LAYOUT)
    assert torch.equal(create_mask(blocks.mask_mod, len(ids), None, *dense.shape[1:], device="cpu")[:, 0], dense)
    assert not torch.equal(dense, dense.tril().new_ones(dense.shape).tril())  # some action blocks are blind


def test_flex_attention_computes_the_hidden_states_of_sdpa_within_1e_6(
    make_policy: Callable[..., VlaPolicy], rows: Rows
) -> None:
    plain, flex, graphs = make_policy(), make_policy(), []

    def run_as_it_is(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    flex.use_flex_attention()
    compile_blocks(flex, backend=run_as_it_is)
    with torch.no_grad():
        for chosen in (rows, rows[::-1]):
            ids = collate(chosen, LAYOUT, length_multiple=64).input_ids
            expected = plain.backbone(ids, attention_mask(ids, LAYOUT))
            torch.testing.assert_close(flex.backbone(ids, block_mask(ids, LAYOUT)), expected, rtol=1e-6, atol=1e-6)
            states = flex(collate(chosen, LAYOUT, length_multiple=64)).states
            assert states["closs"].mean().item() == pytest.approx(plain(collate(chosen, LAYOUT)).states["closs"].mean())
    assert len(graphs) == 1


def test_a_backbone_without_it_says_so() -> None:
    class Own(Backbone):
        forward = output_layer = width = blocks = geometry = None

    with pytest.raises(BackboneError, match=r"^train.attention: Own has no FlexAttention; use sdpa$"):
        Own().use_flex_attention()
