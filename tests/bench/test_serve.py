"""What serving costs is measured on a real server, with clients in another process."""

import pytest
from served import FakePolicy

from vlatrack.bench.serve import measure_serving


@pytest.mark.slow
def test_one_and_many_clients_are_measured_beside_the_policy_itself() -> None:
    cost = measure_serving(FakePolicy(cameras=("front", "wrist")), clients=4, rounds=2, seconds=0.3)
    assert (cost.images, cost.clients, cost.rounds) == (2, 4, 2)
    assert 0 < cost.act_s < cost.round_trip_s
    assert cost.added_s > 0
    assert cost.least_added_s > 0
    assert min(cost.one_client_per_s, cost.clients_per_s, cost.gain, cost.cpu_gain) > 0
    assert 1 <= cost.batch_mean <= 4
