"""What W&B's environment, settings files and logins say, found out without importing wandb."""

import configparser
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from vlatrack.errors import TrackerError

Mode = Literal["online", "offline"]
CLOUD = "https://api.wandb.ai"
CLOUD_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""The cloud of W&B: its address as wandb 0.31 has it, and the one before."""

NO_KEY = (
    "no W&B key: the run is written to offline files; with WANDB_API_KEY or after `wandb login`, "
    "`vlatrack sync RUN` brings it to W&B"
)

NO_KEY_HERE = "no W&B key for {server}: set WANDB_API_KEY, or call `wandb login`"


def resolve_mode(mode: str) -> Mode:
    """The mode that `auto`, `online` or `offline` means here and now; TrackerError for another word."""
    match mode:
        case "online" | "offline":
            return mode
        case "auto":
            return "online" if mode_of_environment() == "online" and has_key() else "offline"
        case other:
            raise TrackerError(f"tracking: wandb mode {other!r}: choose auto, online or offline")


def mode_of_environment() -> Mode:
    """What `WANDB_MODE` says, or else `wandb offline`; TrackerError if W&B is turned off, or for another word."""
    match setting("mode", variable="WANDB_MODE") or "online":
        case "online" | "shared" | "run":
            return "online"
        case "offline" | "dryrun":
            return "offline"
        case "disabled":
            told = "it turns W&B off; take `kind: wandb` out of the trackers, or choose online or offline"
            raise TrackerError(f"tracking: WANDB_MODE=disabled: {told}")
        case other:
            raise TrackerError(f"tracking: WANDB_MODE={other}: choose online or offline")


def has_key(server: str | None = None) -> bool:
    """Whether an API key or an identity token for this server, or else the one in use, stands in the environment or in
    the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = server or base_url()
    hosts = CLOUD_HOSTS if is_cloud(server) else (urlsplit(server).netloc,)  # either name of the cloud may have the key
    for path in _netrc_files():
        try:
            entries = [netrc.netrc(path).authenticators(host) for host in hosts]
        except (OSError, netrc.NetrcParseError):
            continue  # no such file, or none that wandb could read either
        if any(entry is not None and entry[2] for entry in entries):
            return True
    return False


def _netrc_files() -> list[Path]:
    if named := os.environ.get("NETRC"):
        return [Path(named)]
    try:
        return [Path.home() / ".netrc", Path.home() / "_netrc"]
    except RuntimeError:  # a user id without an entry in /etc/passwd, and without HOME
        return []


def base_url() -> str:
    """The server in use: of the environment, of `wandb login --host`, or else the cloud; as it is written there."""
    return setting("base_url", variable="WANDB_BASE_URL") or CLOUD


def is_cloud(server: str) -> bool:
    """Whether an address is one of W&B's own cloud."""
    return urlsplit(server).netloc in CLOUD_HOSTS


def is_page_of(address: str, server: str) -> bool:
    """Whether an address is one of the pages that the server shows to people."""
    host, of_server = urlsplit(address).netloc, urlsplit(server).netloc
    if is_cloud(server):
        return host in {name.removeprefix("api.") for name in CLOUD_HOSTS}
    shown = urlsplit(os.environ.get("WANDB_APP_URL", "")).netloc
    return host in {of_server, of_server.replace("api.", "app.", 1), shown} - {""}


def setting(name: str, *, variable: str) -> str | None:
    """A setting of wandb, from the environment or the files of `wandb login`, `wandb init` and `wandb offline`."""
    return os.environ.get(variable) or _settings_files().get(name) or None


def _settings_files() -> Mapping[str, str]:
    settings = configparser.ConfigParser(interpolation=None)
    for path in (*_settings_of_user(), Path("wandb", "settings")):
        try:
            settings.read(path)
        except (OSError, configparser.Error):
            continue  # wandb ignores such a file, too
    return settings["default"] if settings.has_section("default") else {}


def _settings_of_user() -> list[Path]:
    if folder := os.environ.get("WANDB_CONFIG_DIR"):
        return [Path(folder) / "settings"]
    try:
        return [Path.home() / ".config" / "wandb" / "settings"]
    except RuntimeError:
        return []
