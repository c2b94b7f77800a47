import pytest
import torch

from vlatrack.models.dropout import dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.93])
def test_elements_are_dropped_with_the_probability_and_the_others_scaled(probability) -> None:
    torch.manual_seed(0)
    x = torch.full((1001, 401), 3.0)
    dropped = dropout(x, probability, training=True)
    kept = dropped != 0
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs(1 - kept.double().mean().item() - probability) < 5 * deviation
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 3.0 / (1 - probability)))


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(400_000), 0.5, training=True) == 0).float()
    for distance in (1, 2, 3):
        correlation = torch.corrcoef(torch.stack([dropped[:-distance], dropped[distance:]]))[0, 1]
        assert correlation.abs() < 0.01


def test_the_gradient_passes_where_the_value_does() -> None:
    x = torch.randn(7, 9, requires_grad=True)
    dropped = dropout(x, 0.4, training=True)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, (dropped / x).detach())


def test_the_generators_seed_decides_what_is_dropped() -> None:
    x = torch.ones(1000)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(dropout(x, 0.5, training=True))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


@pytest.mark.parametrize(
    ("probability", "training", "expected"), [(0.9, False, 1.0), (0.0, True, 1.0), (1.0, True, 0.0)]
)
def test_nothing_is_drawn_where_nothing_or_all_is_dropped(probability, training, expected) -> None:
    before = torch.get_rng_state()
    assert dropout(torch.ones(10), probability, training=training).equal(torch.full((10,), expected))
    if not training:
        assert torch.get_rng_state().equal(before)


def test_half_precision_stays_half_precision() -> None:
    assert dropout(torch.ones(3, dtype=torch.bfloat16), 0.5, training=True).dtype == torch.bfloat16
