"""The workspace view "VLA losses" of a W&B project, through the library wandb-workspaces 0.4.

W&B tells the views of a project apart by a name that whoever makes one chooses, and that stands in its address
(`?nw=vlalosses`). It is the same for every project, so that the view is found again and written anew instead of twice.
"""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from vlatrack.errors import TrackerError
from vlatrack.metrics.names import STEP_SLOTS, TRAIN, VAL_IND, VAL_OOD
from vlatrack.tracking.backends.base import BackendConfig, metric_name
from vlatrack.tracking.backends.destinations import is_same_server, target_of
from vlatrack.tracking.backends.environment import configure_libraries
from vlatrack.tracking.backends.registry import backends_of, naming_of
from vlatrack.tracking.backends.wandb.account import NO_KEY_HERE, base_url, has_key
from vlatrack.tracking.backends.wandb.backend import BEST, HEALTH_KEY, X_AXIS, wandb_key
from vlatrack.tracking.backends.wandb.clients import said_by
from vlatrack.tracking.backends.wandb.panels import Chart, ChartSection, KeyOf, view_sections
from vlatrack.tracking.journal.history import last_start
from vlatrack.tracking.privacy import redact
from vlatrack.tracking.run_files import RunFiles

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its models are written as those of an earlier pydantic
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces
    from wandb_workspaces.workspaces.internal import get_view_dict

VIEW_NAME = "VLA losses"
VIEW_ID = "vlalosses"
"""In the address of the view; W&B's own name of it is around that."""
_INTERNAL_NAME = f"nw-{VIEW_ID}-v"
MOST_STEPS = 100
"""Of a chunk, that one chart has lines for."""
_TIMEOUT_S = 20
_REFUSES = "does not take the view"
_COLUMNS_OF_RUNS = ("run:displayName", "run:state", "run:group", f"summary:{HEALTH_KEY}")
_NOT_THERE = "Workspace "
"""How the library begins what it says of a view that a project does not have; of all else it says something else."""


@dataclass(frozen=True)
class ViewOptions:
    """Of which project the view is, and what is in it."""

    project: str
    entity: str | None = None
    """A user or team; None: the default one of the account."""
    naming: str = "documented"
    """How the runs of the project name their metrics."""
    horizon: int = STEP_SLOTS
    is_grouped: bool = False
    """Whether the curves of a group of runs, a sweep or else an experiment, are shown as one, with their range."""

    @classmethod
    def of_environment(cls, runs: Path) -> "ViewOptions":
        """Of the project that a run which names none would report to."""
        found = target_of(BackendConfig("wandb"), runs).options
        return cls(str(found["project"]), _text(found["entity"]))

    @classmethod
    def of_run(cls, run_dir: Path, word: str) -> "ViewOptions":
        """Of the project that a run reports to, in the first place if there are several.

        Raises:
            TrackerError: it does not report to W&B, or to another server than the environment names. `word` says
                which run.
        """
        files = RunFiles(run_dir)
        try:
            configs = backends_of(files.backends.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            configs = []
        config = next((config for config in configs if config.kind == "wandb"), None)
        if config is None:
            raise TrackerError(f"{word}: does not report to W&B; name a project with --entity and --project")
        target = target_of(config, files.runs)
        server = target.started_with["base_url"]
        if not is_same_server(server, base_url()):  # a key is not to go where only the files of a run say
            raise TrackerError(f"{word}: is at {server}; set WANDB_BASE_URL={server}")
        start = last_start(files.journal)
        horizon = None if start is None else start.data["params"].get("action_head.time_horizon")
        return cls(
            str(target.options["project"]),
            _text(target.options["entity"]),
            naming=naming_of(config, run_dir),
            horizon=horizon if type(horizon) is int and 0 < horizon <= MOST_STEPS else STEP_SLOTS,
        )


@dataclass(frozen=True)
class SavedView:
    """Where the view is."""

    entity: str
    project: str
    url: str
    is_new: bool


def view_of(options: ViewOptions) -> dict[str, Any]:
    """The view as it would be saved, as JSON values: `entity`, `project`, `displayName`, `name` and `spec`."""
    configure_libraries()
    model = _workspace(options, options.entity or "", stored_id="")._to_model()
    return model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"id"})


def save_view(options: ViewOptions) -> SavedView:
    """Write the view into the project, over the one that is there.

    Raises:
        TrackerError: there is no key, no such project, or the server refuses or does not answer.
    """
    server = base_url()
    if not has_key(server):
        raise TrackerError(NO_KEY_HERE.format(server=redact(server)))
    configure_libraries()
    wandb.setup(settings=wandb.Settings(silent=True))
    with said_by(server, _REFUSES):
        entity = options.entity or wandb.Api(timeout=_TIMEOUT_S).default_entity
    if not entity:
        raise TrackerError(f"W&B at {redact(server)}: this account has no default entity; name one with --entity")
    stored_id = _stored_id(server, entity, options.project)
    with said_by(server, _REFUSES):
        saved = _workspace(options, entity, stored_id=stored_id or "").save()
        return SavedView(entity, options.project, str(saved.url), is_new=stored_id is None)


def _stored_id(server: str, entity: str, project: str) -> str | None:
    """W&B's id of the view that the project has; None if it has none."""
    with said_by(server, _REFUSES):
        try:
            return str(get_view_dict(entity, project, VIEW_ID)["id"])
        except ValueError as error:
            if str(error).startswith(_NOT_THERE):
                return None
            if str(error).startswith("Project "):
                told = "no such project, or not one that this key may see; a run makes it"
                raise TrackerError(f"W&B at {redact(server)}: {entity}/{project}: {told}") from None
            raise


def _workspace(options: ViewOptions, entity: str, *, stored_id: str) -> workspaces.Workspace:
    def key_of(name: str) -> str:
        return wandb_key(metric_name(name, options.naming))

    workspace = workspaces.Workspace(
        entity=entity,
        project=options.project,
        name=VIEW_NAME,
        sections=[_section(section) for section in view_sections(key_of, horizon=options.horizon)],
        settings=workspaces.WorkspaceSettings(x_axis=X_AXIS, max_runs=20, group_by_prefix="first"),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric("Group")] if options.is_grouped else [],
            pinned_columns=[*_COLUMNS_OF_RUNS, *_columns_of_losses(key_of)],
        ),
        auto_generate_panels=True,  # all other metrics stay below, in their groups
    )
    workspace._internal_name, workspace._internal_id = _INTERNAL_NAME, stored_id
    workspace._internal_runset_id = VIEW_ID
    return workspace


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _columns_of_losses(key_of: KeyOf) -> Iterator[str]:
    """The best of each validation, and where the training stands, for the runs' table; lower is better in all."""
    for split in (VAL_IND, VAL_OOD):
        for loss in ("loss_ct", "closs"):
            yield f"summary:{BEST}{key_of(f'{split}_{loss}')}"
    for loss in ("loss_ct", "closs"):
        yield f"summary:{key_of(f'{TRAIN}_{loss}')}"


def _section(section: ChartSection) -> workspaces.Section:
    rows = -(-len(section.charts) // section.columns)
    return workspaces.Section(
        name=section.name,
        panels=[_panel(section.name, chart) for chart in section.charts],
        is_open=True,
        pinned=section.is_first,
        layout_settings=workspaces.SectionLayoutSettings(columns=section.columns, rows=rows),
        panel_settings=workspaces.SectionPanelSettings(x_axis=X_AXIS),
    )


def _panel(section: str, chart: Chart) -> reports.LinePlot:
    panel = reports.LinePlot(
        title=chart.title,
        x=X_AXIS,
        y=list(chart.keys),
        metric_regex=chart.pattern,
        title_x="training step",
        title_y=chart.unit,
        max_runs_to_show=20,
    )
    # The library would draw one by chance, and each saving would be another view.
    panel._id = hashlib.sha256(f"{section}/{chart.title}".encode()).hexdigest()[:12]
    return panel
