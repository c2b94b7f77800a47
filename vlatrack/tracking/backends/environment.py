"""The environment variables of wandb 0.31 and mlflow 3.17 that say where or how a run is logged, and what they do here.

HONOURED ones do what they do in the library. REFUSED ones ask for what vlatrack cannot give: a run that would report
there is not started. IGNORED ones would change what a tracker holds behind the back of the journal, so that the library
does not see them; those that describe a run are named when it starts.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from vlatrack.tracking.backends.base import BackendConfig


class Treatment(StrEnum):
    """What becomes of a variable."""

    HONOURED = "honoured"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True)
class Variables:
    """Some variables of one library that are treated alike; `why` is a sentence for people."""

    kind: str
    names: str
    """With blanks in between."""
    treatment: Treatment
    why: str
    tell: bool = False
    """Whether a person who sets one is told that it is ignored."""


_H, _R, _I = Treatment.HONOURED, Treatment.REFUSED, Treatment.IGNORED

VARIABLES = (
    Variables("mlflow", "MLFLOW_TRACKING_URI MLFLOW_EXPERIMENT_NAME MLFLOW_WORKSPACE", _H, "they say where a run goes"),
    Variables(
        "mlflow",
        "MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_AUTH "
        "MLFLOW_TRACKING_AWS_SIGV4 "
        "MLFLOW_TRACKING_INSECURE_TLS MLFLOW_TRACKING_SERVER_CERT_PATH MLFLOW_TRACKING_CLIENT_CERT_PATH "
        "MLFLOW_KERBEROS_TICKET_CACHE MLFLOW_KERBEROS_USER MLFLOW_ENABLE_WORKSPACES MLFLOW_ALLOW_FILE_STORE "
        "MLFLOW_HTTP_REQUEST_TIMEOUT MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR MLFLOW_HTTP_REQUEST_BACKOFF_JITTER "
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER MLFLOW_ALLOW_HTTP_REDIRECTS",
        _H,
        "they are the way to the server",
    ),
    Variables("mlflow", "MLFLOW_RUN_ID", _R, "a run of vlatrack makes its own run in MLflow; unset it"),
    Variables("mlflow", "MLFLOW_EXPERIMENT_ID", _R, "name the experiment instead, by MLFLOW_EXPERIMENT_NAME; unset it"),
    Variables(
        "mlflow",
        "MLFLOW_RUN_NAME MLFLOW_RUN_CONTEXT",
        _I,
        "a run has the same name and tags at every tracker",
        tell=True,
    ),
    Variables(
        "mlflow",
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
        _I,
        "the machine is measured by vlatrack itself (`tracking.system_every_s`), for every tracker",
        tell=True,
    ),
    Variables("mlflow", "MLFLOW_REGISTRY_URI MLFLOW_REGISTRY_DIR", _I, "nothing is registered", tell=True),
    Variables("mlflow", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", _I, "a repeated request would make a second run"),
    Variables("mlflow", "MLFLOW_ENABLE_ASYNC_LOGGING", _I, "what MLflow took, but has not stored, would be lost"),
    Variables("mlflow", "MLFLOW_READ_REPLICA_BACKEND_STORE_URI", _I, "what was just written is read back"),
    Variables("mlflow", "MLFLOW_TRUNCATE_LONG_VALUES", _I, "long values are cut here, and a tag says so"),
    Variables("mlflow", "MLFLOW_ACTIVE_MODEL_ID MLFLOW_TRACKING_DIR", _I, "they belong to MLflow's own runs"),
    Variables("mlflow", "MLFLOW_DISABLE_TELEMETRY", _I, "telemetry is always off"),
    Variables("wandb", "WANDB_BASE_URL WANDB_PROJECT WANDB_ENTITY WANDB_ORGANIZATION", _H, "they say where a run goes"),
    Variables("wandb", "WANDB_MODE", _H, "`online` and `shared` are online, `offline` and `dryrun` offline files"),
    Variables(
        "wandb",
        "WANDB_API_KEY WANDB_IDENTITY_TOKEN_FILE WANDB_CREDENTIALS_FILE WANDB_CONFIG_DIR WANDB_APP_URL "
        "WANDB_HTTP_TIMEOUT WANDB_FILE_PUSHER_TIMEOUT WANDB_HTTP_PROXY WANDB_HTTPS_PROXY WANDB_INSECURE_DISABLE_SSL "
        "WANDB_AZURE_ACCOUNT_URL_TO_ACCESS_KEY WANDB_LOGIN_TIMEOUT",
        _H,
        "they are the way to the server",
    ),
    Variables(
        "wandb",
        "WANDB_CACHE_DIR WANDB_DATA_DIR WANDB_ARTIFACT_DIR",
        _H,
        "they say where the client keeps its own files",
    ),
    Variables("wandb", "WANDB_USERNAME WANDB_EMAIL WANDB_USER_EMAIL", _H, "they say for whom a service account logs"),
    Variables("wandb", "WANDB_DISABLED", _R, "it turns W&B off; take `kind: wandb` out of the trackers, or unset it"),
    Variables(
        "wandb",
        "WANDB_SWEEP_ID WANDB_SWEEP_PARAM_PATH WANDB_LAUNCH WANDB_LAUNCH_CONFIG_PATH",
        _R,
        "sweeps and jobs of W&B cannot start a run of vlatrack; `tracking.group` shows runs together; unset it",
    ),
    Variables("wandb", "WANDB_RUN_ID", _R, "the id of a W&B run is that of the run itself; unset it"),
    Variables("wandb", "WANDB_FORK_FROM WANDB_RESUME_FROM", _R, "`init_from` starts from another run; unset it"),
    Variables(
        "wandb",
        "WANDB_NAME WANDB_RUN_NAME WANDB_NOTES WANDB_RUN_NOTES WANDB_TAGS WANDB_RUN_TAGS WANDB_RUN_GROUP "
        "WANDB_JOB_TYPE WANDB_RUN_JOB_TYPE",
        _I,
        "name, tags and group (`tracking.group`) of a run are the same at every tracker",
        tell=True,
    ),
    Variables("wandb", "WANDB_DIR WANDB_ROOT_DIR", _I, "W&B's files are in the run's directory", tell=True),
    Variables("wandb", "WANDB_RESUME WANDB_RESUMED WANDB_REINIT", _I, "a run is continued by its id"),
    Variables(
        "wandb", "WANDB_SERVICE", _I, "the delivery has a client of its own, apart from that of a training script"
    ),
    Variables(
        "wandb",
        "WANDB_CONFIG WANDB_CONFIG_PATHS WANDB_ALLOW_VAL_CHANGE WANDB_SYNC_TENSORBOARD WANDB_IGNORE_GLOBS "
        "WANDB_ALLOW_OFFLINE_ARTIFACTS WANDB_MAX_END_OF_RUN_HISTORY_METRICS WANDB_MAX_END_OF_RUN_SUMMARY_METRICS",
        _I,
        "a tracker holds what the journal holds, no more and no less",
    ),
    Variables(
        "wandb",
        "WANDB_CODE_DIR WANDB_DISABLE_CODE WANDB_SAVE_CODE WANDB_DISABLE_GIT WANDB_DISABLE_GIT_FORK_POINT "
        "WANDB_GIT_COMMIT WANDB_GIT_REMOTE WANDB_GIT_REMOTE_URL WANDB_GIT_ROOT WANDB_DISABLE_JOB_CREATION "
        "WANDB_JOB_NAME WANDB_JOB_SOURCE WANDB_DOCKER WANDB_HOST WANDB_PROGRAM WANDB_PROGRAM_ABSPATH "
        "WANDB_PROGRAM_RELPATH WANDB_NOTEBOOK_NAME WANDB_LABEL_DISABLE",
        _I,
        "they would describe the delivery process; commit, host and command of the run are in its tags and manifest",
    ),
    Variables(
        "wandb",
        "WANDB_CONSOLE WANDB_CONSOLE_MULTIPART WANDB_CONSOLE_CHUNK_MAX_BYTES WANDB_CONSOLE_CHUNK_MAX_SECONDS "
        "WANDB_CAPTURE_LOGGERS WANDB_SILENT WANDB_QUIET WANDB_SHOW_COLORS WANDB_SHOW_EMOJI WANDB_SHOW_ERRORS "
        "WANDB_SHOW_INFO WANDB_SHOW_WARNINGS WANDB_SUMMARY_WARNINGS",
        _I,
        "the delivery process has no console to show or to record",
    ),
    Variables(
        "wandb",
        "WANDB_INIT_TIMEOUT WANDB_FINISH_TIMEOUT WANDB_FINISH_TIMEOUT_RAISES WANDB_SUMMARY_TIMEOUT "
        "WANDB_HEARTBEAT_SECONDS WANDB_STRICT WANDB_STOP_ON_FATAL_ERROR WANDB_STOP_FN WANDB_FORCE WANDB_RELOGIN "
        "WANDB_ANONYMOUS WANDB_SYMLINK WANDB_ALLOW_MEDIA_SYMLINK WANDB_USE_DOT_WANDB WANDB_SETTINGS_SYSTEM "
        "WANDB_SAGEMAKER_DISABLE WANDB_TABLE_RAISE_ON_MAX_ROW_LIMIT_EXCEEDED",
        _I,
        "delivery has its own patience and retries",
    ),
    Variables("wandb", "WANDB_ERROR_REPORTING", _I, "telemetry is always off"),
)
_FIXED = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "WANDB_ERROR_REPORTING": "false",
}
_OFF = {"", "0", "false", "no", "off"}


def refusal(config: BackendConfig) -> str | None:
    """The first variable that forbids to start a run with this backend, and why."""
    for variables, name in _set_variables(config.kind, Treatment.REFUSED):
        if os.environ[name].lower() not in _OFF:
            return f"{name} is set: {variables.why}"
    return None


def ignored_line(kind: str) -> str | None:
    """Which variables, of those that a person may have set on purpose, are ignored, and why."""
    told = [
        f"{name} is ignored: {variables.why}"
        for variables, name in _set_variables(kind, Treatment.IGNORED)
        if variables.tell
    ]
    return "; ".join(told) or None


def configure_libraries() -> None:
    """Turn off the telemetry of both libraries, MLflow's retries of requests and its asynchronous logging, and take
    what is not honoured out of this process's environment, before a library reads it.

    Where the answer to "create a run" was cut, a retry would create another; delivery asks first for what is there.
    """
    for kind in ("mlflow", "wandb"):
        for treatment in (Treatment.IGNORED, Treatment.REFUSED):
            for _, name in list(_set_variables(kind, treatment)):
                if name not in _FIXED:
                    os.environ.pop(name, None)  # another thread may have done so
    os.environ.update(_FIXED)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def _set_variables(kind: str, treatment: Treatment) -> Iterator[tuple[Variables, str]]:
    for variables in VARIABLES:
        if variables.kind == kind and variables.treatment == treatment:
            yield from ((variables, name) for name in variables.names.split() if name in os.environ)
