import pytest
import torch
from torch.nn.functional import cross_entropy

from vlatrack.models.losses import token_losses as module
from vlatrack.models.losses.token_losses import token_losses


@pytest.mark.parametrize("keeps_softmax", [True, False])
@pytest.mark.parametrize("logits_at_once", [1, 70, 10_000])
def test_losses_and_gradients_equal_torchs_own_whatever_the_chunks(monkeypatch, logits_at_once, keeps_softmax) -> None:
    monkeypatch.setitem(module._LOGITS_AT_ONCE, "cpu", logits_at_once)
    if not keeps_softmax:
        monkeypatch.setattr(module, "_KEPT_ON_CPU", 0)
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


def _inputs_of(positions: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(positions, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    return hidden, weight, torch.randint(0, vocabulary, (positions,))


def _kept_elements(*inputs: torch.Tensor) -> int:
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x):
        token_losses(*inputs)
    return sum(kept)


def test_the_softmax_is_kept_only_of_small_batches_in_float32_and_for_a_backward_pass(monkeypatch) -> None:
    inputs = hidden, weight, _ = _inputs_of(positions=300, vocabulary=512)
    logits = len(hidden) * len(weight)
    assert _kept_elements(*inputs) >= logits
    with torch.no_grad():
        assert _kept_elements(*inputs) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert _kept_elements(*inputs) < logits / 10
    with module.logits_at_once_as_on("cuda"):
        assert _kept_elements(*inputs) < logits / 10
    monkeypatch.setattr(module, "_KEPT_ON_CPU", logits - 1)
    assert _kept_elements(*inputs) < logits / 10


def test_gradients_of_two_losses_can_be_taken_from_one_forward_pass() -> None:
    hidden, weight, targets = _inputs_of(positions=20, vocabulary=256)
    losses = token_losses(hidden, weight, targets)
    first = torch.autograd.grad(losses.nll.sum(), [hidden, weight], retain_graph=True)
    torch.autograd.grad(losses.logsumexp.square().sum(), [hidden, weight], retain_graph=True)
    again = torch.autograd.grad(losses.nll.sum(), [hidden, weight])
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))


def test_where_predictions_are_certain_the_gradient_is_no_less_exact_for_the_kept_softmax(monkeypatch) -> None:
    hidden, weight, _ = _inputs_of(positions=200, vocabulary=1024)
    targets = (hidden @ weight.t()).argmax(1)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        h, w = (x.detach().to(dtype).mul(4).requires_grad_() for x in (hidden, weight))
        is_exact = dtype == torch.float64
        nll = cross_entropy(h @ w.t(), targets, reduction="none") if is_exact else token_losses(h, w, targets).nll
        assert (-nll).exp().median() > 0.999
        return torch.cat([x.flatten() for x in torch.autograd.grad(nll.sum(), [h, w])])

    exact, kept = gradient(torch.float64), gradient(torch.float32)
    monkeypatch.setattr(module, "_KEPT_ON_CPU", 0)
    recomputed = gradient(torch.float32)
    assert (kept - exact).norm() <= (recomputed - exact).norm()


@pytest.mark.parametrize("vocabulary", [256, 300])
def test_predicted_is_the_first_of_the_greatest_logits_or_the_first_nan(vocabulary) -> None:
    logits = torch.zeros(5, vocabulary)
    logits[0, [7, 130, 255]] = 2.0
    logits[1, [140, 150]] = 1.0
    logits[2, 3], logits[2, [129, 200]] = 9.0, torch.nan
    logits[3, 255] = torch.inf
    assert module._argmax(logits).tolist() == logits.argmax(1).tolist() == [7, 140, 129, 255, 0]
