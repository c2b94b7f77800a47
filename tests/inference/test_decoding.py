"""Blocks decoded side by side are the blocks that are decoded one after another."""

import numpy as np
import pytest
import torch
from tiny_policy import BINS, GEOMETRY, LAYOUT
from transformers import StaticCache

from vlatrack.inference.decoding import StaticRoom, decode_blocks, head_actions, prefill
from vlatrack.models.attention import attention_mask
from vlatrack.models.backbones.base import Backbone
from vlatrack.models.backbones.causal_lm.backbone import CausalLMFactory
from vlatrack.models.backbones.chameleon.backbone import ChameleonBackbone, backbone_config
from vlatrack.models.heads.action_head import ActionHead
from vlatrack.models.losses.terms import documented_terms
from vlatrack.models.policy import VlaPolicy
from vlatrack.tokens.prompts import Ids, image_block

SIZES = [(steps, numbers) for steps in (1, 5, 10, 20) for numbers in (4, 7, 14)]


def make_policy(steps: int, numbers: int, *, seed: int = 0, backbone: Backbone | None = None) -> VlaPolicy:
    torch.manual_seed(seed)
    backbone = backbone or ChameleonBackbone(backbone_config({**GEOMETRY, "max_position_embeddings": 512}))
    with torch.no_grad():  # logits that differ: as they are drawn, the first few would win everywhere
        backbone.output_layer.normal_()
    head = ActionHead(backbone_width=backbone.width, time_horizon=steps, action_dim=numbers, reduced_width=16, heads=2)
    losses = documented_terms(backbone.layout, (steps, numbers))
    return VlaPolicy(backbone, head, layout=backbone.layout, bins=BINS, losses=losses).eval()


def prompts_for(policy: VlaPolicy, *words: int) -> list[Ids]:
    """A prompt of so many words and an image each."""
    generator, layout = np.random.default_rng(0), policy.layout

    def prompt(count: int) -> Ids:
        text = generator.integers(layout.byte_base, layout.byte_base + 200, count)
        image = image_block(generator.integers(0, 500, (2, 2)) + layout.first_image_code, layout)
        return np.concatenate([[layout.bos], text, image, [layout.end_of_turn]])

    return [prompt(count) for count in words]


@torch.no_grad()
def one_after_another(policy: VlaPolicy, prompt: Ids) -> torch.Tensor:
    """The chunk [H, A] decoded token by token, each from a forward pass over all before it."""
    head, layout, ids = policy.action_head, policy.layout, prompt.tolist()
    first, chunk = layout.action_start + 2, []
    for _ in range(head.time_horizon):
        ids.append(layout.action_start)
        for _ in range(head.action_dim):
            row = torch.tensor([ids])
            hidden = policy.backbone(row, attention_mask(row, layout))[0, -1]
            logits = policy.backbone.output_layer[first : first + BINS.count] @ hidden
            ids.append(int(logits.argmax()) + first)
        chunk.append(ids[-head.action_dim :])
        ids.append(layout.action_end)
    return torch.tensor(chunk)


@torch.no_grad()
def side_by_side(policy: VlaPolicy, prompts: list[Ids]) -> torch.Tensor:
    return decode_blocks(policy, prefill(policy, prompts, keep=True))


@pytest.mark.parametrize(("steps", "numbers"), SIZES)
def test_blocks_side_by_side_have_the_tokens_of_blocks_one_after_another(steps: int, numbers: int) -> None:
    policy = make_policy(steps, numbers, seed=steps + numbers)
    prompts = prompts_for(policy, 3, 11, 1)  # ragged
    decoded = side_by_side(policy, prompts)
    assert decoded.shape == (3, steps, numbers)
    for row, prompt in zip(decoded, prompts, strict=True):
        assert torch.equal(row, one_after_another(policy, prompt))
    assert len(decoded.unique()) > min(8, numbers)


@torch.no_grad()
def test_so_have_they_where_keys_and_values_stay_in_their_place() -> None:
    policy = make_policy(5, 4)
    static = StaticRoom(policy.backbone)
    for words in ((3, 11, 1), (2, 9, 4), (3, 12, 1), (7,), (1, 1)):  # fits, fits, is too long, other numbers of rows
        prompts = prompts_for(policy, *words)
        kept = prefill(policy, prompts, keep=True, static=static)
        assert isinstance(kept.kept, StaticCache)
        assert torch.equal(decode_blocks(policy, kept), side_by_side(policy, prompts))


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("is_static", [False, True])
def test_so_have_they_after_prompts_that_are_padded_to_a_multiple(steps: int, is_static: bool) -> None:
    policy = make_policy(steps, 7)
    static = StaticRoom(policy.backbone) if is_static else None
    prompts = prompts_for(policy, 3, 11, 1)
    with torch.no_grad():
        padded = prefill(policy, prompts, keep=True, length_multiple=64, static=static)
        assert padded.input_ids.shape == (3, 64)
        assert torch.equal(decode_blocks(policy, padded), side_by_side(policy, prompts))
        acting = [head_actions(policy, prefill(policy, prompts, keep=False, length_multiple=m)) for m in (1, 64)]
    torch.testing.assert_close(*acting, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_static_room_is_used_again_where_it_will_do() -> None:
    policy = make_policy(5, 4)
    static = StaticRoom(policy.backbone)
    first, again, longer, more = (
        prefill(policy, prompts_for(policy, *words), keep=True, static=static).kept
        for words in ((9,), (3,), (12,), (3, 3))
    )
    assert first is again
    assert len({id(first), id(longer), id(more)}) == 3


@pytest.mark.parametrize("keeps_keys", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_so_have_they_with_other_decoders_and_without_kept_keys(family, keeps_keys, monkeypatch) -> None:
    factory = CausalLMFactory(
        family=family, preset="tiny", sizes={}, checkpoint=None, residual_dropout=0.0, max_seq_len=256
    )
    policy = make_policy(5, 4, backbone=factory.open().build())
    monkeypatch.setattr(type(policy.backbone), "keeps_keys", keeps_keys)
    prompts = prompts_for(policy, 7, 2)
    with torch.no_grad():
        static = decode_blocks(policy, prefill(policy, prompts, keep=True, static=StaticRoom(policy.backbone)))
    for row, same, prompt in zip(side_by_side(policy, prompts), static, prompts, strict=True):
        assert torch.equal(row, one_after_another(policy, prompt))
        assert torch.equal(same, row)


def test_a_chunk_takes_a_forward_pass_for_each_number_of_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, passes = make_policy(10, 7), []
    further = ChameleonBackbone.forward_further
    monkeypatch.setattr(
        ChameleonBackbone,
        "forward_further",
        lambda self, ids, *others: passes.append(tuple(ids.shape)) or further(self, ids, *others),
    )
    (prompt,) = prompts_for(policy, 3)
    side_by_side(policy, [prompt])
    assert passes == [(1, len(prompt)), *[(1, 10)] * 7]


@torch.no_grad()
def test_the_head_acts_in_one_pass_whatever_other_rows_there_are() -> None:
    policy = make_policy(5, 4)
    prompts = prompts_for(policy, 9, 2)
    together = head_actions(policy, prefill(policy, prompts, keep=False))
    alone = [head_actions(policy, prefill(policy, [prompt], keep=True)) for prompt in prompts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert LAYOUT.action_start not in np.concatenate(prompts)
