"""What `vlatrack bench act` measures."""

import json
from pathlib import Path

import pytest
from program import TOY
from typer.testing import CliRunner

from vlatrack.cli.main import app
from vlatrack.errors import SpecError


def test_acting_is_measured_without_data_and_all_figures_are_written(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    words = ["bench", "act", str(TOY), "action_head.time_horizon=4", "--rounds", "3", "--json", str(file)]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "the same tokens" in done.output
    written = json.loads(file.read_text())
    assert {"created", "command", "vlatrack", "packages", "hardware", "settings", "cost"} <= written.keys()
    cost = written["cost"]
    assert (cost["horizon"], cost["action_dim"], cost["rounds"], cost["same_tokens"]) == (4, 2, 3, True)
    assert 0 < cost["prefill_s"] < cost["one_by_one_s"]
    assert cost["speed_up"] > 1


def test_what_is_asked_for_is_measured_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    options = ["--dtype", "bf16", "--static-cache", "--rounds", "1", "--json", str(file)]
    done = CliRunner().invoke(app, ["bench", "act", str(TOY), *options], catch_exceptions=False)
    assert "times as fast" in done.output
    asked = json.loads(file.read_text())["cost"]["asked"]
    assert (asked["dtype"], asked["compiled"], asked["static_cache"]) == ("bf16", False, True)
    assert asked["head_s"] > 0
    assert 0 < asked["head_difference"] < 0.1


def test_an_experiment_without_actions_is_refused(tmp_path: Path) -> None:
    words = ["bench", "act", str(TOY), "data.samples=[world_model]", "--json", str(tmp_path / "cost.json")]
    with pytest.raises(SpecError, match="so this policy does not act"):
        CliRunner().invoke(app, words, catch_exceptions=False)
