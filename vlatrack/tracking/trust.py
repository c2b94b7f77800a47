"""Whether what a run folder says is this user's own word.

A folder that somebody else made may name a class to import, or a server that would get this user's login and answers
where the files of the run are to be put, on this machine too. A training process delivers what its own user's spec
names. A later `vlatrack sync` has only the folder: it uses what the user has named elsewhere.
"""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.destinations import sqlite_uri, target_of
from vlatrack.tracking.backends.wandb.account import resolve_mode
from vlatrack.tracking.privacy import redact

_ADDRESS = re.compile(r"(?i)([a-z][a-z0-9+.-]*)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?(/[a-z0-9._~%/+-]*)?")
"""An address that every library reads alike; of one with a login, a backslash or the like, libraries disagree which
part of it is the host."""
_PORTS = {"http": ":80", "https": ":443"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trust:
    """What of a run folder is believed: the classes that its custom backends name, and where it is delivered to."""

    backends: bool = False
    destination: bool = False


OWN_RUN, NOTHING = Trust(backends=True, destination=True), Trust()


def untrusted(config: BackendConfig, runs: Path, *, trust: Trust) -> str | None:
    """Why this backend of a run below the folder `runs` is not to be connected, in one line that says what to do; None
    if it may be. Raises TrackerError for options that mean nothing here."""
    match config.kind:
        case "custom" if config.target is not None and ":" in config.target and not trust.backends:
            return (
                f"its class {config.target} is not loaded, since the run folder alone names it; "
                "`vlatrack sync --trust-backends` loads it"
            )
        case "mlflow" if not trust.destination:
            target = target_of(config, runs)
            uri = target.options.get("tracking_uri")
            if not uri or target.unset is not None:  # the store beside the run; or nothing is sent anyway
                return None
            place = _host_of(str(uri))
            if place == _host_of(os.environ.get("MLFLOW_TRACKING_URI", "")) or place in _remembered():
                return None
            return (
                f"nothing is sent to {redact(place)}, since the run folder alone names it; with MLFLOW_TRACKING_URI or "
                "`vlatrack sync --trust-destination` you say that your login may go there"
            )
        case "wandb" if not trust.destination:
            mode = str(config.options.get("mode") or "auto")
            for settings in (Path("wandb", "settings"), Path(".wandb", "settings")):
                if settings.exists() and resolve_mode(mode) == "online":
                    return (
                        f"nothing is sent, since {settings.absolute()} may name another server for your W&B key; "
                        "sync from another folder, or with --trust-destination"
                    )
    return None


def remember(configs: Iterable[BackendConfig]) -> None:
    """Note the servers that this user's own run reports to, so that a later sync delivers there."""
    used = [config for config in configs if config.kind == "mlflow"]
    stores = (config.started_with.get("store") for config in used)  # a run may be moved away from it
    uris = (config.started_with.get("tracking_uri") or config.options.get("tracking_uri") for config in used)
    named = {_host_of(str(uri)) for uri in uris if uri} | {sqlite_uri(Path(store)) for store in stores if store}
    for place in sorted(named - _remembered()) if named else ():
        try:
            _list().parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # never shared, as runs may be
            # One short append, which no other run that starts at the same time can tear.
            fd = os.open(_list(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(f"{place}\n")
        except (OSError, RuntimeError) as error:
            _log.info("%s is not remembered (%s); a sync needs --trust-destination", redact(place), error)


def _host_of(uri: str) -> str:
    """Scheme, host and port; of what is no plain address, such as the path of a database, all of it."""
    found = _ADDRESS.fullmatch(uri)
    if found is None:
        return uri
    scheme, host, port, _ = found.groups()
    return f"{scheme}://{host}{port or _PORTS.get(scheme.lower(), '')}".lower()


def _remembered() -> set[str]:
    try:
        return set(_list().read_text(encoding="utf-8", errors="replace").splitlines())
    except FileNotFoundError:
        return set()
    except (OSError, RuntimeError) as error:
        _log.info("the servers of your own runs cannot be read (%s)", error)
        return set()


def _list() -> Path:
    """RuntimeError for a user without a home."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "vlatrack" / "trusted-destinations"
