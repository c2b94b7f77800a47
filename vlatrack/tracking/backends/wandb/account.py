"""Whether W&B can be reached with a key, found out without importing wandb."""

import configparser
import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from vlatrack.errors import TrackerError

Mode = Literal["online", "offline"]
CLOUD_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""The cloud of W&B: its address as wandb 0.31 has it, and the one before."""

NO_KEY = (
    "no W&B key: the run is written to offline files; with WANDB_API_KEY or after `wandb login`, "
    "`vlatrack sync RUN` brings it to W&B"
)


def resolve_mode(mode: str) -> Mode:
    """The mode that `auto`, `online` or `offline` means here and now; TrackerError for another word."""
    match mode:
        case "online" | "offline":
            return mode
        case "auto":
            return "online" if os.environ.get("WANDB_MODE", "online") == "online" and has_key() else "offline"
        case other:
            raise TrackerError(f"tracking: wandb mode {other!r}: choose auto, online or offline")


def has_key() -> bool:
    """Whether an API key or an identity token stands in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            entries = [netrc.netrc(path).authenticators(host) for host in _hosts()]
        except (OSError, netrc.NetrcParseError):
            continue  # no such file, or none that wandb could read either
        if any(entry is not None and entry[2] for entry in entries):
            return True
    return False


def _hosts() -> tuple[str, ...]:
    """The names under which `wandb login` may have kept the key of the server in use."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _base_url_of_login() or "").netloc
    return CLOUD_HOSTS if host in ("", *CLOUD_HOSTS) else (host,)


def _base_url_of_login() -> str | None:
    """The server that `wandb login --host` made the default."""
    folder = os.environ.get("WANDB_CONFIG_DIR")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read((Path(folder) if folder else Path.home() / ".config" / "wandb") / "settings")
    except (OSError, configparser.Error):
        return None  # wandb ignores such a file, too
    return settings.get("default", "base_url", fallback=None)
