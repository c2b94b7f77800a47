"""The trackers of a run, as its folder names them."""

from dataclasses import replace
from pathlib import Path

from vlatrack.errors import TrackerError
from vlatrack.tracking.backends.base import BackendConfig
from vlatrack.tracking.backends.registry import BUILT_IN, backend_label, backends_of
from vlatrack.tracking.delivery.cursor import CursorFile
from vlatrack.tracking.privacy import check_no_links
from vlatrack.tracking.run_files import RunFiles


def configs_of_run(run_dir: Path) -> dict[str, BackendConfig]:
    """The backends that a run reports to, by label, as `mlflow-0`; none if it has none or never started.

    Raises TrackerError if the file that names them is damaged, or a file beside it is a symbolic link.
    """
    files = RunFiles(run_dir)
    try:
        check_no_links(files.delivery)
        configs = backends_of(files.backends.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TrackerError(f"{files.backends}: cannot be read ({error.strerror}); make it readable") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise TrackerError(f"{files.backends}: damaged ({error}); resume the run to write it anew") from error
    for config in configs:
        if config.kind not in (*BUILT_IN, "custom"):
            told = f"damaged (no backend is called {config.kind!r}); resume the run to write it anew"
            raise TrackerError(f"{files.backends}: {told}")
    labels = {backend_label(config, index): config for index, config in enumerate(configs)}
    return {label: _with_its_server(files, label, config) for label, config in labels.items()}


def _with_its_server(files: RunFiles, label: str, config: BackendConfig) -> BackendConfig:
    """vlatrack 0.1 did not note where a run was meant to go; its cursor knows the server that it has reached."""
    if config.kind != "mlflow" or config.started_with or config.options.get("tracking_uri"):
        return config
    reached = CursorFile(files.delivery, label).read().destination
    return replace(config, started_with={"tracking_uri": reached}) if reached.startswith("http") else config
