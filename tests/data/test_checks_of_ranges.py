"""Ranges that say nothing are found before a training: constant numbers, a gripper lost between quantiles, outliers."""

from pathlib import Path

import numpy as np
import pytest

from vlatrack.builders.data import build_norm_stats, normalisation_of, open_splits
from vlatrack.data.checks.ranges import Ranges, check_ranges
from vlatrack.data.episode_statistics import EpisodeStatistics
from vlatrack.data.episodes import Episode
from vlatrack.data.range_costs import range_costs
from vlatrack.data.statistics import NormStats
from vlatrack.data.store.token_store import TokenStore
from vlatrack.errors import DataError
from vlatrack.spec.load import load_spec
from vlatrack.tokens.bins import Bins, ValueRange

QUICKSTART = Path("experiments/quickstart.yaml")
NOISE = np.random.default_rng(0).normal(size=1000)


def findings_of(values: np.ndarray, method: str, *, as_is: tuple[int, ...] = (), kind: str = "action") -> list[str]:
    """`check: message; remedy` of each finding about these values of one dimension."""
    episodes = [Episode(0, "push", values.astype(np.float32)[:, None], None)]
    statistics = EpisodeStatistics.of(episodes)
    norm_stats = NormStats.from_episodes(
        episodes, method=method, use_state=False, name="demos", action_as_is=as_is, statistics=statistics
    )
    ranges = Ranges(kind, statistics.actions, norm_stats.actions, ("gripper",), as_is)
    found = list(check_ranges("demos", [ranges], method))
    assert all(finding.where == f"demos: {kind} 0 (gripper)" for finding in found)
    return [f"{finding.severity} {finding.check}: {finding.message}; {finding.remedy}" for finding in found]


def test_a_dimension_that_moves_has_no_finding() -> None:
    for method in ("minmax", "quantiles"):
        assert findings_of(NOISE, method) == []
        assert findings_of(np.sign(NOISE), method) == []


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones(9), "error constant: is always 1, which is no range to normalise by"),
        (np.full(9, 0.5) + np.linspace(0, 1e-7, 9), "error constant: is nearly constant, 0.5 to 0.5, which"),
        (np.full(9, 300.0) + np.linspace(0, 1e-4, 9), "error constant: is nearly constant"),
    ],
)
def test_a_dimension_that_does_not_move_is_an_error(values: np.ndarray, told: str) -> None:
    (found,) = findings_of(values, "minmax")
    assert found.startswith(told)


def test_the_remedy_is_a_setting_that_helps() -> None:
    (found,) = findings_of(np.ones(9), "minmax")
    assert found.endswith("keep it as it is: tokenizer.statistics={method: minmax, action_as_is: [0]}")
    assert findings_of(np.ones(9), "minmax", as_is=(0,)) == []
    (found,) = findings_of(np.full(9, 3.0), "minmax")
    assert "write the ranges by hand" in found, "as it is, it would be clipped to 1"


def test_one_setting_is_the_remedy_for_all_dimensions_at_once() -> None:
    values = np.zeros((9, 4), np.float32)
    values[:, 1] = np.arange(9)
    statistics = EpisodeStatistics.of([Episode(0, "push", values, values)])
    zeros = ValueRange((0.0,) * 4, (0.0, 8.0, 0.0, 0.0))
    groups = [Ranges("action", statistics.actions, zeros, as_is=[3]), Ranges("state", statistics.states, zeros)]
    found = list(check_ranges("demos", groups, "minmax"))
    assert [finding.where for finding in found] == [
        f"demos: {place}" for place in ("action 0", "action 2", "state 0", "state 2", "state 3")
    ]
    setting = "{method: minmax, action_as_is: [0, 2, 3], state_as_is: [0, 2, 3]}"
    assert {finding.remedy for finding in found} == {f"keep it as it is: tokenizer.statistics={setting}"}


def test_a_gripper_that_rarely_closes_is_lost_between_quantiles() -> None:
    gripper = np.where(np.arange(1000) < 995, -1.0, 1.0)
    (found,) = findings_of(gripper, "quantiles")
    assert found.startswith("error lost between quantiles: is lost between the quantiles: -1 to -1 of -1 to 1, so")
    assert "action_as_is: [0]" in found
    assert findings_of(gripper, "minmax") == findings_of(gripper, "quantiles", as_is=(0,)) == []


def test_one_of_three_positions_that_is_cut_off_is_an_error() -> None:
    values = np.concatenate([np.full(495, -1.0), np.zeros(500), np.full(5, 1.0)])
    (found,) = findings_of(values, "quantiles")
    assert found.startswith("error lost between quantiles: is lost between the quantiles: -1 to 0 of -1 to 1")


def test_what_stays_as_it_is_has_to_lie_in_its_range() -> None:
    (found,) = findings_of(np.where(NOISE > 0, 255, 0), "minmax", as_is=(0,))
    assert found.startswith("error as it is: stays as it is, but 46.6% of its values lie outside")
    assert found.endswith("(0 to 255); take it out of action_as_is")
    (found,) = findings_of(np.full(9, 3.0), "minmax", as_is=(0,), kind="state")
    assert found.startswith("warning"), "a state that is always the same loses nothing"


def test_a_few_outliers_that_take_the_range_are_a_warning() -> None:
    (found,) = findings_of(np.append(NOISE, 1e4), "minmax")
    assert found.startswith("warning outliers: 98 % of its values lie within a hundredth of its range")
    assert findings_of(np.append(NOISE, 1e4), "quantiles") == []


def test_ranges_by_hand_that_clip_are_a_warning() -> None:
    statistics = EpisodeStatistics.of([Episode(0, "push", NOISE.astype(np.float32)[:, None], None)])
    (found,) = check_ranges("demos", [Ranges("action", statistics.actions, ValueRange((-1,), (1,)))], None)
    assert (found.severity, found.check, found.where) == ("warning", "clipping", "demos: action 0")
    assert f"{(np.abs(NOISE) > 1).mean():.1%} of its values lie outside -1 to 1 and are clipped" in found.message


def test_costs_are_those_of_encoding_and_decoding_every_value() -> None:
    values = NOISE.astype(np.float32)[:, None]
    ranges, bins = ValueRange((-1.5,), (1.0,)), Bins(64)
    (cost,) = range_costs(EpisodeStatistics.of([Episode(0, "push", values, None)]).actions, ranges, bins)
    normalised = ranges.normalise(values)
    decoded = bins.centres[np.clip(np.digitize(normalised, bins.edges) - 1, 0, 62)]
    unclipped = (values.astype(np.float64) + 1.5) / 2.5 * 2 - 1
    assert cost.floor == pytest.approx(np.abs(decoded - normalised).mean())
    assert cost.clipping == pytest.approx(np.abs(unclipped - normalised).mean(), abs=1e-6)
    assert cost.clipped == pytest.approx(np.mean((values < -1.5) | (values > 1.0)))


def test_a_run_refuses_a_constant_action_by_its_name_and_the_remedy_works(tmp_path: Path) -> None:
    one_task = ["data.train.exclude_tasks=[]", "data.train.tasks=[open the window]"]
    spec = load_spec(QUICKSTART, one_task)
    with pytest.raises(DataError, match=r"metaworld-mini: action 3 \(gripper\): is always 1, .*; keep it") as refused:
        build_norm_stats(spec, open_splits(spec, TokenStore(tmp_path), ["train"])["train"])
    remedy = str(refused.value).rpartition("keep it as it is: ")[2]
    mended = load_spec(QUICKSTART, [*one_task, remedy])
    norm_stats = build_norm_stats(mended, open_splits(mended, TokenStore(tmp_path), ["train"])["train"])
    assert (norm_stats.actions.low[3], norm_stats.actions.high[3]) == (-1, 1)


def test_what_the_tokens_cost_is_one_line(tmp_path: Path) -> None:
    spec = load_spec(QUICKSTART, ["tokenizer.statistics=quantiles"])
    told = normalisation_of(spec, open_splits(spec, TokenStore(tmp_path), ["train"])["train"]).costs.line()
    assert told.startswith("what the tokens cost, mean L1 in units of [-1, 1]: actions 0.0029 by bins, 0 by clipping")
    assert told.endswith("of dimension 0 clipped")


def test_statistics_of_the_shipped_quickstart_are_what_they_were(tmp_path: Path) -> None:
    spec = load_spec(QUICKSTART)
    train = open_splits(spec, TokenStore(tmp_path), ["train"])["train"]
    for method in ("minmax", "quantiles"):
        chosen = load_spec(QUICKSTART, [f"tokenizer.statistics={method}"])
        found = build_norm_stats(chosen, train)
        for ranges, name in ((found.actions, "actions"), (found.states, "states")):
            values = np.concatenate([getattr(episode, name) for episode in train.episodes]).astype(np.float64)
            expected = np.quantile(values, [0.0, 1.0] if method == "minmax" else [0.01, 0.99], axis=0)
            assert ranges is not None
            assert [ranges.low, ranges.high] == [tuple(row) for row in expected.tolist()]
