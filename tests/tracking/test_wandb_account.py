"""Where a W&B key is looked for."""

from pathlib import Path

import pytest

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.wandb.account import has_key, resolve_mode


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory of a person without a key in the environment."""
    for name in ("NETRC", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_a_login_to_the_cloud_is_found_under_its_old_and_its_new_address(home: Path, host: str) -> None:
    assert not has_key()
    (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {'k' * 40}\n")
    (home / ".netrc").chmod(0o600)
    assert has_key()
    assert resolve_mode("auto") == "online"


def test_a_login_to_a_server_of_ones_own_is_found_by_its_address(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".netrc").write_text(f"machine wandb.lab:8080\n  login user\n  password {'k' * 40}\n")
    (home / ".netrc").chmod(0o600)
    assert not has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.lab:8080")
    assert has_key()
    monkeypatch.delenv("WANDB_BASE_URL")
    (home / ".config" / "wandb").mkdir(parents=True)
    (home / ".config" / "wandb" / "settings").write_text("[default]\nbase_url = http://wandb.lab:8080\n")
    assert has_key()


def test_a_mode_is_online_offline_or_what_the_environment_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resolve_mode("online"), resolve_mode("auto")) == ("online", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode("auto") == "offline"
    with pytest.raises(TrackerError, match="choose auto, online or offline"):
        resolve_mode("sometimes")
