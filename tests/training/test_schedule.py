import pytest

from vlatrack.training.schedule import Schedule


def test_learning_rate_warms_up_linearly_and_falls_on_a_cosine() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.1, warmup_epochs=1, epochs=5, shape="cosine")
    assert [schedule.at(epoch) for epoch in (0, 0.5, 1, 3, 5)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


def test_constant_schedule_stays_after_the_warm_up() -> None:
    schedule = Schedule(lr=1.0, min_lr=0.0, warmup_epochs=0, epochs=5, shape="constant")
    assert [schedule.at(epoch) for epoch in (0, 2, 5)] == [1, 1, 1]


@pytest.mark.parametrize(("decay_shape", "after_a_quarter"), [("sqrt", 0.1 + 0.9 * 0.5), ("linear", 0.1 + 0.9 * 0.75)])
def test_wsd_warms_up_stays_and_decays_in_the_last_epochs(decay_shape: str, after_a_quarter: float) -> None:
    schedule = Schedule(1.0, 0.1, warmup_epochs=1, epochs=9, shape="wsd", decay_epochs=4, decay_shape=decay_shape)
    assert [schedule.at(epoch) for epoch in (0.5, 1, 3, 5, 6, 9)] == pytest.approx([0.5, 1, 1, 1, after_a_quarter, 0.1])
