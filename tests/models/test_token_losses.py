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
