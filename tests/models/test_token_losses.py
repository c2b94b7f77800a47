import pytest
import torch
from torch.nn.functional import cross_entropy

from vlatrack.models.losses import token_losses as module
from vlatrack.models.losses.token_losses import token_losses


@pytest.mark.parametrize("logits_at_once", [1, 70, 10_000])
def test_losses_and_gradients_equal_torchs_own_whatever_the_chunks(monkeypatch, logits_at_once) -> None:
    monkeypatch.setitem(module._LOGITS_AT_ONCE, "cpu", logits_at_once)
    torch.manual_seed(0)
    hidden, weight = torch.randn(11, 6, dtype=torch.float64), torch.randn(17, 6, dtype=torch.float64)
    targets, factor = torch.randint(0, 17, (11,)), torch.rand(11, dtype=torch.float64)
    results = []
    for ours in (True, False):
        h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()
        if ours:
            losses = token_losses(h, w, targets)
            nll, logsumexp, predicted = losses.nll, losses.logsumexp, losses.predicted
        else:
            logits = h @ w.t()
            nll, logsumexp = cross_entropy(logits, targets, reduction="none"), logits.logsumexp(1)
            predicted = logits.argmax(1)
        ((nll * factor).sum() + 0.3 * logsumexp.square().sum()).backward()
        results.append((nll, logsumexp, predicted, h.grad, w.grad))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_computes_the_logits_in_bfloat16() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(hidden, weight, torch.arange(5))
        expected = (hidden @ weight.t()).float().logsumexp(1)
    losses.logsumexp.sum().backward()
    torch.testing.assert_close(losses.logsumexp, expected, rtol=1e-6, atol=1e-6)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def _layer_gradient(hidden, weight, targets, factor) -> torch.Tensor:
    weight = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses = token_losses(hidden, weight, targets)
    (losses.nll * factor + 1e-3 * losses.logsumexp.square()).sum().backward()
    return weight.grad


@pytest.mark.parametrize("chunks", [1, 7, 70])
def test_bfloat16_gradient_of_the_output_layer_is_as_exact_in_many_chunks_as_in_one(monkeypatch, chunks) -> None:
    positions, width, vocabulary = 280, 16, 40
    torch.manual_seed(0)
    hidden, weight = torch.randn(positions, width), torch.randn(vocabulary, width)
    targets, factor = torch.randint(0, vocabulary, (positions,)), torch.rand(positions)
    one_chunk = _layer_gradient(hidden, weight, targets, factor)
    monkeypatch.setitem(module._LOGITS_AT_ONCE, "cpu", positions // chunks * vocabulary)
    gradient = _layer_gradient(hidden, weight, targets, factor)
    assert (gradient - one_chunk).norm() / one_chunk.norm() < 1e-6


def test_bfloat16_gradient_of_the_output_layer_is_that_of_the_rounded_factors_in_float64() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 16), torch.randn(40, 16), torch.randint(0, 40, (50,))
    gradient = _layer_gradient(hidden, weight, targets, torch.ones(50))
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    softmax = logits.softmax(1)
    d_logits = softmax * (1 + 2e-3 * logits.logsumexp(1, keepdim=True))
    d_logits[torch.arange(50), targets] -= 1
    exact = d_logits.bfloat16().double().t() @ hidden.bfloat16().double()
    assert (gradient - exact).norm() / exact.norm() < 1e-4
