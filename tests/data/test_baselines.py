import numpy as np

from vlatrack.data.baselines import baseline_errors, median_action


def test_the_errors_of_policies_that_see_nothing_are_those_of_their_definitions() -> None:
    episode = np.array([[0.0, 1.0], [0.5, 1.0], [1.0, -1.0], [1.0, -1.0]], dtype=np.float32)
    constant = median_action([episode])
    assert constant.tolist() == [0.75, 0.0]
    errors = baseline_errors([episode], constant, horizon=2)
    # Chunks begin at steps 0, 1 and 2; the first one has no action before it.
    assert errors["constant"] == [[(0.75 + 0.25 + 0.25) / 3, 1.0], [(0.25 + 0.25 + 0.25) / 3, 1.0]]
    assert errors["repeat"] == [[0.5, 1.0], [0.75, 2.0]]


def test_no_other_constant_has_a_smaller_error() -> None:
    actions = np.random.default_rng(0).normal(size=(201, 3)).clip(-1, 1).astype(np.float32)
    best = np.mean(baseline_errors([actions], median_action([actions]), horizon=1)["constant"])
    for other in np.random.default_rng(1).uniform(-1, 1, size=(50, 3)).astype(np.float32):
        assert np.mean(baseline_errors([actions], other, horizon=1)["constant"]) >= best


def test_chunks_begin_where_samples_do_and_short_episodes_have_none() -> None:
    actions = np.arange(8, dtype=np.float32)[:, None] / 8
    errors = baseline_errors([actions, actions[:2]], np.zeros(1, np.float32), horizon=3, every=4)
    assert errors["constant"] == [[0.25], [0.375], [0.5]]  # from steps 0 and 4
    assert baseline_errors([actions[:2]], np.zeros(1, np.float32), horizon=3) == {}
