import shlex
from datetime import datetime

import pytest

from vlatrack.spec.run_name import overrides_text, run_name, short_paths

NOON = datetime(2026, 1, 31, 12, 0, 5)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["loss.loss_ct_weights=1", "seed=2"], "loss_ct_weights=1 · seed=2 · 2026-01-31 12:00:05"),
        (["seed=1", "optim.lr=1e-4", "seed=2"], "seed=2 · lr=1e-4 · 2026-01-31 12:00:05"),
        ([], "toy · 2026-01-31 12:00:05"),
        (["train.device=cpu", "tracking.backends=[]", "train.workers=2"], "toy · 2026-01-31 12:00:05"),
        (["data.train.path=demos/left", "data.val_ind.path=demos/right"],
         "train.path=demos/left · val_ind.path=demos/right · 2026-01-31 12:00:05"),
        (["data.train.path=/a/very/long/way/to/the/demos/of-the-left-arm"],
         "path=…ay/to/the/demos/of-the-left-arm · 2026-01-31 12:00:05"),
        (["optim.groups=[{match: action_head.*,\n  lr: 1e-4}]"],
         "groups=[{match: action_head.*, lr: 1e-… · 2026-01-31 12:00:05"),
    ],
)  # fmt: skip
def test_a_run_is_called_by_what_it_changes_and_when_it_began(overrides: list[str], name: str) -> None:
    assert run_name("toy", overrides, NOON) == name


def test_the_name_of_very_many_changes_says_how_many_are_left_out_and_fits_every_tracker() -> None:
    name = run_name("toy", [f"optim.groups.{i}.match={'x' * 40}" for i in range(9)], NOON)
    assert name.endswith(" · +7 · 2026-01-31 12:00:05")
    assert len(name) <= 128


def test_paths_are_told_apart_by_their_shortest_ends() -> None:
    assert short_paths(["a.lr", "b.lr", "lr", "c.d.seed"]) == {
        "a.lr": "a.lr",
        "b.lr": "b.lr",
        "lr": "lr",
        "c.d.seed": "seed",
    }


def test_the_overrides_of_both_parts_of_a_run_are_one_text_that_a_shell_reads_back() -> None:
    began = overrides_text(["seed=12", "tracking.backends=[{kind: mlflow}]"])
    text = overrides_text(["seed=1", "seed=12"], began)
    assert shlex.split(text) == ["seed=12", "tracking.backends=[{kind: mlflow}]", "seed=1"]
    assert overrides_text([]) == ""
