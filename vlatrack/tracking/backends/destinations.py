"""Which tracker a backend reports to: what its options say, else the environment, else what that said when the run
started. A run that was meant for a server never goes to the local store only because a variable is missing."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import ONLY_ONE, BackendConfig, Destination, Scalar
from vlatrack.tracking.backends.wandb import account
from vlatrack.tracking.privacy import redact, redact_param

MLFLOW_STORE = "mlflow.db"
"""In the runs folder: where MLflow's runs go without any setting."""
MLFLOW_VIEW = "vla-losses"
"""The id of the saved view that each experiment of MLflow has."""
LOCAL_STORE = "the store in the runs folder"
DEFAULT_PROJECT = "vlatrack"

_DEFAULT_PORTS = {"http": 80, "https": 443}
_SQLITE = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")
_SQLITE_MAGIC, _SQLITE_ID = b"SQLite format 3\0", slice(68, 72)
"""How a SQLite database begins, and where its `application_id` stands: bytes 68 to 71 of its header."""


@dataclass(frozen=True)
class Target:
    """Where a backend reports to here and now."""

    destination: Destination
    options: Mapping[str, Scalar]
    """Those of the configuration, with what the environment adds."""
    started_with: Mapping[str, str]
    """What is stored with the run, so that another environment can be told from this one."""
    unset: str | None = None
    """Which destination the run was meant for, and what to set, if the environment lacks that: nothing is delivered."""
    redirected: str | None = None
    """That the environment names another destination than the one that the run was meant for."""


def target_of(config: BackendConfig, runs: Path) -> Target:
    """Where the backend of a run below the folder `runs` reports to."""
    match config.kind:
        case "mlflow":
            return _mlflow_target(config, runs)
        case "wandb":
            return _wandb_target(config)
        case _:
            return Target(ONLY_ONE, config.options, {})


def remember_starts(
    configs: Sequence[BackendConfig], earlier: Sequence[BackendConfig], runs: Path
) -> list[BackendConfig]:
    """The configurations, with where the run is meant to go; `earlier` are those of the part of the run before a
    resume, whose destinations stay where the environment now names none. What was an option then counts only as one."""
    started: list[BackendConfig] = []
    for index, config in enumerate(configs):
        kept: dict[str, str] = {}
        if index < len(earlier) and earlier[index].kind == config.kind:
            options, kept = earlier[index].options, dict(earlier[index].started_with)
            kept = {name: value for name, value in kept.items() if options.get(name) in (None, "", "auto")}
        kept["id_suffix"] = _id_suffix([*started, config])
        target = target_of(replace(config, started_with=kept), runs)
        started.append(replace(config, started_with=target.started_with))
    return started


def check_same_naming(configs: Sequence[BackendConfig], earlier: Sequence[BackendConfig], runs: Path) -> None:
    """Check that a resumed run names its metrics as before where it goes on, for else a tracker had each of them twice.

    Offline files are written anew, with the whole run, and may have other names.

    Raises:
        TrackerError: a tracker would have them under two names.
    """
    before = {(config.kind, target_of(config, runs).destination.name): config.naming for config in earlier}
    for config in configs:
        destination = target_of(config, runs).destination
        naming = before.get((config.kind, destination.name), config.naming)
        if naming != config.naming and not destination.is_temporary:
            raise TrackerError(
                f"tracking: {config.kind}: this run began with naming: {naming}, and with {config.naming} each of its "
                f"metrics would be there twice; resume it with naming: {naming}, or start a new run"
            )


def _id_suffix(configs: Sequence[BackendConfig]) -> str:
    """What tells the id of the last one's run from those before it: W&B's client serves one run of an id at a time."""
    number = sum(config.kind == "wandb" for config in configs)
    return f"-{number}" if number > 1 else ""


def sqlite_uri(path: Path) -> str:
    """The address of a database file, whatever is in its path: SQLAlchemy takes `?` for a query, and unquotes `%`.

    MLflow does not: for an address that begins with `sqlite:///` it would make a folder of the quoted name.
    """
    quoted = quote(str(path))
    is_odd = "%" in str(path) or "?" in str(path)
    return f"sqlite+pysqlite:///{quoted}" if is_odd else f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the database file that an address names; None if it names none."""
    found = _SQLITE.match(uri)
    return None if found is None or found["path"].startswith("file:") else Path(unquote(found["path"])).absolute()


def public_address(uri: str) -> str:
    """An address as it can be stored and compared: absolute, without a login, in one spelling."""
    if (path := sqlite_path(uri)) is not None:
        return sqlite_uri(path)
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):  # a folder; `databricks` and the like have no place on this disk
        is_folder = parts.scheme == "file" or "/" in uri
        return Path(unquote(parts.path)).absolute().as_uri() if is_folder else redact(uri)
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme in _DEFAULT_PORTS:
        host = host.lower().removesuffix(f":{_DEFAULT_PORTS[parts.scheme]}")
        return redact(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")))
    query = urlencode([(name, redact_param(name, value)) for name, value in parse_qsl(parts.query)])
    return redact(urlunsplit((parts.scheme, host, parts.path, query, "")))


def store_id(path: Path) -> int | None:
    """The number by which a SQLite store of MLflow is told from another one that was at its path before; 0 if it has
    not got one yet, None if there is no database."""
    try:
        with path.open("rb") as file:
            header = file.read(_SQLITE_ID.stop)
    except OSError:
        return None
    return int.from_bytes(header[_SQLITE_ID]) if header.startswith(_SQLITE_MAGIC) else None


def _mlflow_target(config: BackendConfig, runs: Path) -> Target:
    option, variable = config.options.get("tracking_uri"), os.environ.get("MLFLOW_TRACKING_URI")
    meant = config.started_with.get("tracking_uri")
    if option:
        # A relative path is one of the folder in which the run was started.
        found = _SQLITE.match(str(option))
        is_relative = found is not None and not found["path"].startswith(("/", "file:"))
        uri: str | None = meant if meant and is_relative and sqlite_path(meant) is not None else str(option)
    else:
        uri = variable or meant or None
    to_set = ["MLFLOW_TRACKING_URI"] if meant and not option and not variable else []
    workspace, meant_workspace = os.environ.get("MLFLOW_WORKSPACE", ""), config.started_with.get("workspace", "")
    if meant_workspace and not workspace:
        workspace, to_set = meant_workspace, [*to_set, f"MLFLOW_WORKSPACE={meant_workspace}"]
    experiment = _first(config, "experiment", os.environ.get("MLFLOW_EXPERIMENT_NAME")) or ""
    now = {"tracking_uri": "" if uri is None else public_address(uri), "experiment": experiment, "workspace": workspace}
    if uri is None:
        uri = _store_left_behind(config, runs)
        now["store"] = config.started_with["store"] if uri is not None else str(runs / MLFLOW_STORE)
    options = {**config.options, "tracking_uri": uri, "experiment": experiment or None}
    return _told(config, Target(_mlflow_destination(uri, now, runs), options, now), to_set, _mlflow_words)


def _store_left_behind(config: BackendConfig, runs: Path) -> str | None:
    """The store that a run was started beside, if the run was moved away from it, alone, to where there is none."""
    store = Path(config.started_with.get("store", ""))
    is_ours = store.name == MLFLOW_STORE and bool(store_id(store))
    return sqlite_uri(store) if is_ours and not (runs / MLFLOW_STORE).exists() else None


def _mlflow_destination(uri: str | None, now: Mapping[str, str], runs: Path) -> Destination:
    store = runs / MLFLOW_STORE if uri is None else sqlite_path(uri)
    in_experiment = "".join(f", {what} {now[what]}" for what in ("workspace", "experiment") if now[what])
    legacy = LOCAL_STORE if uri is None else redact(uri)
    if store is None:
        return Destination(public_address(str(uri)) + in_experiment, former_names=("", legacy))
    number = store_id(store)
    if number is None:  # what an earlier one at this path had, this one will not have
        return Destination(f"a new MLflow store{in_experiment}")
    former = ("", legacy, f"MLflow store {0:08x}{in_experiment}")  # its number is given when it is first used
    return Destination(f"MLflow store {number:08x}{in_experiment}", former_names=former)


def _mlflow_words(started_with: Mapping[str, str]) -> str:
    place = started_with.get("tracking_uri") or LOCAL_STORE
    parts = [f", {what} {started_with[what]}" for what in ("workspace", "experiment") if started_with.get(what)]
    return "".join([f"MLflow at {place}", *parts])


def _wandb_target(config: BackendConfig) -> Target:
    server, to_set = account.base_url(), []
    meant = config.started_with.get("base_url")
    if meant and not os.environ.get("WANDB_BASE_URL") and not is_same_server(server, meant):
        server, to_set = meant, [f"WANDB_BASE_URL={meant}"]
    project = _first(config, "project", account.setting("project", variable="WANDB_PROJECT")) or DEFAULT_PROJECT
    entity = _first(config, "entity", account.setting("entity", variable="WANDB_ENTITY")) or ""
    mode, lacks_key, turned_off = _wandb_mode(config, server)
    to_set += ["WANDB_API_KEY (or call `wandb login`)"] if lacks_key else []
    suffix = config.started_with.get("id_suffix", "")
    now = {"base_url": public_address(server), "project": project, "entity": entity, "mode": mode, "id_suffix": suffix}
    options = {**config.options, "project": project, "entity": entity or None, "id_suffix": suffix}
    if mode == "offline":
        files = Destination("offline files", is_temporary=True, former_names=("",))
        return _told(config, Target(files, options, now), [], _wandb_words)
    place = "W&B" if account.is_cloud(server) else public_address(server)
    former = ("", "W&B", redact(server))
    destination = Destination(f"{place}, {entity or 'default entity'}/{project}{suffix}", former_names=former)
    return _told(config, Target(destination, options, now, unset=turned_off), to_set, _wandb_words)


def _wandb_mode(config: BackendConfig, server: str) -> tuple[str, bool, str | None]:
    """Online or offline; whether a key is missing for that; and why W&B cannot be used at all."""
    option, at_start = str(config.options.get("mode") or "auto"), config.started_with.get("mode", "offline")
    if option != "auto":
        return account.resolve_mode(option), False, None
    try:
        if account.mode_of_environment() == "offline":
            return "offline", False, None
    except TrackerError as error:
        return "online", False, str(error)
    if account.has_key(server):
        return "online", False, None
    return at_start, at_start == "online", None


def _wandb_words(started_with: Mapping[str, str]) -> str:
    if started_with.get("mode") == "offline":
        return "offline files of W&B"
    return f"W&B at {started_with.get('base_url')}, project {started_with.get('project')}"


def is_same_server(one: str, other: str) -> bool:
    """Whether two addresses are those of one W&B server."""
    return public_address(one) == public_address(other) or (account.is_cloud(one) and account.is_cloud(other))


def _first(config: BackendConfig, name: str, variable: str | None) -> str | None:
    """An option, else what the environment says, else what it said when the run started."""
    option = config.options.get(name)
    return str(option) if option else variable or config.started_with.get(name)


def _told(
    config: BackendConfig, target: Target, to_set: Sequence[str], words: Callable[[Mapping[str, str]], str]
) -> Target:
    """The target, with what a person should know of it: the run was meant for another place."""
    meant, now = config.started_with, target.started_with
    if meant.get("mode", meant.get("tracking_uri")) is None:  # not told yet, or by an earlier vlatrack
        return target
    if to_set:
        return replace(target, unset=f"meant for {words(meant)}; set {' and '.join(to_set)} and `vlatrack sync` again")
    came_online = meant.get("mode") == "offline"
    if came_online or words(meant) == words(now):
        return target
    return replace(target, redirected=f"meant for {words(meant)}; the environment now sends it to {words(now)}")
