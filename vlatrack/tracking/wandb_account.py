"""Whether W&B can be reached with a key, found out without importing wandb."""

import netrc
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from vlatrack.errors import TrackerError

Mode = Literal["online", "offline"]
NO_KEY = "no W&B key: the run is written to offline files; set WANDB_API_KEY or call `wandb login` to see it online"


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
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            entry = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue  # no such file, or none that wandb could read either
        if entry is not None and entry[2]:
            return True
    return False
