from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from vlatrack.tracking.backends.mlflow.runs import mlflow_key, name_of_mlflow_key

NAMES = st.text(min_size=1, max_size=30) | st.text(alphabet="ax:3/. é%", min_size=1, max_size=8)


@given(NAMES)
def test_every_name_becomes_a_key_that_mlflow_takes_and_back(name: str) -> None:
    key = mlflow_key(name)
    _validate_metric_name(key)
    assert name_of_mlflow_key(key) == name


def test_documented_and_sectioned_names_stay_as_they_are() -> None:
    for name in ("train_l1_loss_action_5", "val_ind/closs", "epoch"):
        assert mlflow_key(name) == name
