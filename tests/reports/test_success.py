"""Success rates of the metrics of a run."""

from vlatrack.reports.success import SimulatedRate, simulated_rates


def rate_metrics(prefix: str, success: float) -> dict[str, float]:
    return {
        f"{prefix}/success": success,
        f"{prefix}/success_low": success - 0.25,
        f"{prefix}/success_high": success + 0.25,
        f"{prefix}/episodes": 9,
        f"{prefix}/errors": 1,
    }


def test_rates_stand_by_simulator_and_task_and_one_task_alone_is_all() -> None:
    metrics = {"train_closs": 1.0} | rate_metrics("sim/arena/push", 0.25) | rate_metrics("sim/arena", 0.5)
    blind = rate_metrics("sim/arena-blind/push", 0.25) | rate_metrics("sim/arena-blind", 0.25)
    rates = list(simulated_rates(metrics | rate_metrics("sim/arena/pull", 0.75) | blind))
    assert [(rate.group, rate.task, rate.success) for rate in rates] == [
        ("arena", "all", 0.5),
        ("arena", "push", 0.25),
        ("arena", "pull", 0.75),
        ("arena-blind", "all", 0.25),
    ]
    assert rates[0] == SimulatedRate("arena", "all", 9, 1, 0.5, (0.25, 0.75))


def test_episodes_that_were_all_errors_have_no_rate() -> None:
    (rate,) = simulated_rates({"sim/arena/episodes": 3, "sim/arena/errors": 3})
    assert (rate.success, rate.interval, rate.errors) == (None, (0.0, 1.0), 3)
