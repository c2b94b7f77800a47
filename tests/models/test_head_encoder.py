import pytest
import torch
from torch import nn

from vlatrack.models.heads.encoder import encode

ROWS, POSITIONS, QUERIES, WIDTH = 3, 11, 4, 16


def make_encoder(dropout: float = 0.0) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, dim_feedforward=32, dropout=dropout, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
    for parameter in encoder.parameters():  # biases are made as zeros, which would hide that one is not used
        nn.init.normal_(parameter, std=0.3)
    return encoder


def make_inputs(masked: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(1)
    lengths = torch.tensor([7, 3, 5])[:, None]
    ignored = (torch.arange(POSITIONS) >= lengths) & (torch.arange(POSITIONS) < POSITIONS - QUERIES)
    return torch.randn(ROWS, POSITIONS, WIDTH), ignored if masked else None


@pytest.mark.parametrize("masked", [True, False])
def test_the_last_positions_and_all_gradients_equal_those_of_torchs_encoder(masked) -> None:
    encoder, (features, ignored) = make_encoder().train(), make_inputs(masked)
    results = []
    for ours in (True, False):
        encoder.zero_grad()
        x = features.clone().requires_grad_()
        if ours:
            output = encode(encoder, x, ignored, last=QUERIES)
        else:
            output = encoder(x, src_key_padding_mask=ignored)[:, -QUERIES:]
        output.square().sum().backward()
        results.append([output, x.grad, *(parameter.grad for parameter in encoder.parameters())])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_with_dropout_mean_and_spread_over_many_draws_are_those_of_torchs_encoder() -> None:
    encoder, (features, ignored) = make_encoder(dropout=0.2).train(), make_inputs(masked=True)
    assert ignored is not None
    draws = 2000
    with torch.no_grad():
        many, hidden = features.repeat(draws, 1, 1), ignored.repeat(draws, 1)
        ours = encode(encoder, many, hidden, last=QUERIES)
        torchs = encoder(many, src_key_padding_mask=hidden)[:, -QUERIES:]
    ours, torchs = (x.unflatten(0, (draws, ROWS)) for x in (ours, torchs))
    error = ((ours.var(0) + torchs.var(0)) / draws).sqrt()
    assert ((ours.mean(0) - torchs.mean(0)).abs() / error).max() < 5
    ratio = ours.std(0) / torchs.std(0)
    assert 0.85 < ratio.min() < ratio.max() < 1.15


def test_in_evaluation_dropout_does_nothing() -> None:
    features, ignored = make_inputs(masked=True)
    plain, dropping = (encode(make_encoder(rate).eval(), features, ignored, last=QUERIES) for rate in (0.0, 0.5))
    assert plain.equal(dropping)
