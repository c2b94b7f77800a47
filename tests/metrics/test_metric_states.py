import math
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vlatrack.metrics.declarations import split_metrics
from vlatrack.metrics.losses import DOCUMENTED_LOSSES
from vlatrack.metrics.metric import metric_values
from vlatrack.metrics.states import MetricStates, states_from_v1

OLD_RUNS = Path(__file__).parents[1] / "runner" / "runs-of-0.1.0.tar.xz"


def _states(**sums) -> MetricStates:
    return MetricStates.of({name: (torch.tensor(total), count) for name, (total, count) in sums.items()})


def _plain(states: MetricStates) -> dict[str, tuple]:
    return {name: (state.total.tolist(), state.count.tolist()) for name, state in states.items()}


def test_states_add_by_name_and_the_empty_one_changes_nothing() -> None:
    first, second = _states(a=(1.0, 2), b=(3.0, 4)), _states(b=(10.0, 1), c=([5.0, 6.0], 7))
    expected = {"a": (1, 2), "b": (13, 5), "c": ([5, 6], 7)}
    assert _plain(first + second) == _plain(second + first) == expected
    assert _plain(sum([first, second], MetricStates())) == expected
    assert _plain(MetricStates() + first) == _plain(first + MetricStates()) == _plain(first)
    assert len(MetricStates()) == 0


def test_long_windows_add_up_in_double_precision_and_without_gradients() -> None:
    total = torch.tensor(1.0, requires_grad=True) * 16777216  # 2^24: the next integer is no float32
    states = MetricStates.of({"a": (total, 1)}) + _states(a=(1.0, 1))
    assert states["a"].total.item() == 16777217
    assert not states["a"].total.requires_grad


def test_states_survive_a_checkpoint_by_name(tmp_path) -> None:
    states = _states(closs=(1.5, 3), of_a_later_release=([[1.0, 2.0]], 4))
    torch.save(states.state_dict(), tmp_path / "states.pt")
    stored = torch.load(tmp_path / "states.pt", weights_only=True)
    assert _plain(MetricStates.from_state_dict(stored)) == _plain(states)


def test_states_travel_between_ranks_as_a_few_hundred_bytes() -> None:
    states = _states(loss_ct=([[0.1] * 7] * 5, 8), acc_image=([math.nan] * 10, 2.5), z_loss=(math.inf, 1))
    packed = pickle.dumps(states)
    assert len(packed) < 800
    restored = pickle.loads(packed)
    assert restored["loss_ct"].total.dtype == torch.float64
    torch.testing.assert_close(restored.state_dict(), states.state_dict(), rtol=0, atol=0, equal_nan=True)


def test_states_that_were_counted_on_a_gpu_and_on_the_host_are_read_together() -> None:
    with FakeTensorMode():  # which knows the device of a tensor, and what may not be mixed, without having a GPU
        on_gpu = MetricStates.of({"acc_image_codes": (torch.zeros(3, device="cuda"), 2.0)})
        on_host = MetricStates.of({"acc_image_codes_copied": (torch.zeros(2, 5), 1.0)})
        read = (on_gpu + on_host + on_gpu).cpu()
    assert {tensor.device.type for tensor in read.state_dict().values()} == {"cpu"}
    assert [tuple(state.total.shape) for state in read.values()] == [(3,), (2, 5)]


def test_overall_mean_weighs_each_element_by_its_count() -> None:
    states = MetricStates.of({"a": (torch.tensor([6.0, 1.0]), torch.tensor([3.0, 1.0])), "b": (torch.ones(2, 2), 2)})
    assert states["a"].overall_mean() == 7 / 4
    assert states["b"].overall_mean() == 1 / 2
    assert _states(nothing=(0.0, 0))["nothing"].overall_mean() == 0


def _values(states: MetricStates) -> dict[str, float]:
    return metric_values(split_metrics(horizon=3, action_dim=2, image_slots=10, losses=DOCUMENTED_LOSSES), states)


def test_a_window_without_a_step_that_was_taken_has_losses_of_nan_and_nothing_else() -> None:
    """Zero would be the best loss there ever was."""
    losses = {"closs", "loss_ct", "z_loss", "loss", "weighted_loss_ct", "weighted_z_loss"}
    nothing_counted = {"acc_action": (torch.zeros(3, 2), 0), "acc_image": (torch.zeros(10), torch.zeros(10))}
    for states in (MetricStates(), _states(closs=(0.0, 0), loss_ct=(0.0, 0)), MetricStates.of(nothing_counted)):
        values = _values(states)
        assert values.keys() == losses
        assert all(map(math.isnan, values.values()))


def test_a_loss_term_without_a_count_beside_one_that_has_one_is_zero() -> None:
    values = _values(_states(closs=(6.0, 3), loss_ct=(0.0, 0)))
    assert (values["closs"], values["loss_ct"], values["z_loss"], values["loss"]) == (2, 0, 0, 2)


@pytest.fixture(scope="module")
def old_sums(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Of a run of vlatrack 0.1.0 that was killed five steps into its second epoch."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD_RUNS) as archive:
        (member,) = [m for m in archive if m.name.startswith("killed/") and m.name.endswith("00000020/optimizer.pt")]
        archive.extract(member, folder, filter="data")
    return torch.load(folder / member.name, weights_only=True)["sums"]["epoch_sums"]


def test_sums_of_a_0_1_0_checkpoint_are_the_metrics_that_they_were(old_sums) -> None:
    values = _values(states_from_v1(old_sums))
    rows = old_sums["action_rows"]
    assert rows > 0
    assert values["closs"] == (old_sums["cross_entropy"] / old_sums["token_weight"]).item()
    assert values["z_loss"] == (old_sums["z"] / old_sums["tokens"]).item()
    assert values["loss_ct"] == (old_sums["head_error"].sum() / (rows * 6)).item()
    assert values["loss"] == values["closs"] + 10 * values["loss_ct"] + 1e-5 * values["z_loss"]
    assert values["l1_loss_action_7"] == (old_sums["token_error"][0] / rows).mean().item()
    assert values["l1_loss_head_9"] == (old_sums["head_error"][2] / rows).mean().item()
    assert values["l1_loss_dim_1"] == (old_sums["token_error"][:, 1] / rows).mean().item()
    assert values["acc_action"] == (old_sums["token_hits"] / rows).mean().item()
    assert values["quantisation_floor"] == (old_sums["floor_error"] / old_sums["floor_rows"]).mean().item()
    assert values["acc_image_9"] == (old_sums["image_hits"][9] / old_sums["image_tokens"][9]).item()


def test_sums_of_a_0_1_0_checkpoint_go_on_with_the_states_of_today(old_sums) -> None:
    old, new = states_from_v1(old_sums), _states(closs=(8.0, 2), of_a_later_release=(1.0, 1))
    together = old + new
    assert together["closs"].total == old_sums["cross_entropy"] + 8
    assert together["closs"].count == old_sums["token_weight"] + 2
    assert together.keys() == old.keys() | new.keys()
