"""A run as its files tell it: the journal, and the manifest of any format."""

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatrack.errors import DataError
from vlatrack.spec.identity import Scalar, flatten
from vlatrack.spec.setting_differences import with_defaults
from vlatrack.tracking.journal.history import RunStatus, few_points, last_start, run_status
from vlatrack.tracking.journal.records import JournalDamage, Record, last_record
from vlatrack.tracking.run_files import RunFiles

History = Mapping[str, Sequence[tuple[int, float]]]
"""For each metric its (training step, value) pairs, ascending in step."""
MANIFEST = "manifest.json"
_MAX_MANIFEST = 64 << 20


@dataclass(frozen=True)
class Repository:
    """A git repository as a manifest tells it."""

    root: str | None
    remote: str | None
    commit: str
    branch: str | None
    diff: str
    diff_cut: bool
    untracked: Mapping[str, str]
    untracked_left_out: Sequence[str]
    submodules: Mapping[str, str]


@dataclass(frozen=True)
class RecordedManifest:
    """What a run was made of; what an earlier version did not record is empty."""

    format: int = 0  # 0: there is no manifest
    vlatrack: str | None = None
    command: Sequence[str] = ()
    processes: int = 1
    directory: str | None = None
    repositories: Mapping[str, Repository] = field(default_factory=dict)  # "vlatrack", "experiment"
    python: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    image_commit: str | None = None
    hardware: Mapping[str, str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    statistics: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> "RecordedManifest":
        """Raises DataError for a file that is no manifest."""
        if not file.exists():
            return cls()
        try:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MANIFEST:
                raise DataError(f"{file}: no manifest of a run; restore it")
            return cls.of(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{file}: no manifest of a run ({type(error).__name__}); restore it") from error

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "RecordedManifest":
        """Raises ValueError, TypeError, KeyError or AttributeError for what is none."""
        packages = _texts(content.get("packages"))
        old_python = packages.pop("python", None) if "format" not in content else None
        repositories = {
            name: _repository(content[key])
            for name, key in (("vlatrack", "git"), ("experiment", "user_git"))
            if content.get(key) is not None
        }
        return cls(
            format=int(content.get("format", 1)),
            vlatrack=_text(content.get("vlatrack")),
            command=[str(word) for word in content.get("command", ())],
            processes=int(content.get("processes", 1)),
            directory=_text(content.get("directory")),
            repositories=repositories,
            python=old_python or _text((content.get("python") or {}).get("version")),
            packages=packages,
            environment=_texts(content.get("environment")),
            image=_text(content.get("image")),
            image_commit=_text(content.get("image_commit")),
            hardware={
                name: ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
                for name, value in (content.get("hardware") or {}).items()
            },
            fingerprints=_texts(content.get("fingerprints"))
            or {f"data.{split}": str(data["sha256"]) for split, data in (content.get("data") or {}).items()},
            statistics=dict(content.get("statistics") or {}),
        )


@dataclass(frozen=True)
class RecordedRun:
    """A run as it lies in a directory or an archive."""

    place: str  # as it was named
    name: str
    experiment: str
    settings: Mapping[str, Scalar]
    tags: Mapping[str, str]
    status: RunStatus
    history: History  # of a long run few points, see `few_points`
    manifest: RecordedManifest
    damaged: str | None = None  # the lines of its journal that are left out

    @classmethod
    def read(cls, folder: Path, *, place: str | None = None) -> "RecordedRun":
        """Damaged lines of the journal are left out. DataError or TrackerError, in one line, for what is no run."""
        files = RunFiles(folder)
        place = place or str(folder)
        if not files.journal.is_file() or files.journal.is_symlink():
            raise DataError(f"{place}: no run directory (journal.jsonl is missing)")
        damage = JournalDamage(files.journal)
        start = last_start(files.journal, damage=damage)
        if start is None and last_record(files.journal, damage=damage) is None:
            raise DataError(f"{place}: its journal holds no record, so nothing is known of the run; leave it out")
        experiment, params = _begun(start, files.run_dir)
        return cls(
            place=place,
            name=files.run_dir.name,
            experiment=experiment,
            settings=with_defaults(params),
            tags={} if start is None else start.data["tags"],
            status=run_status(files.run_dir, damage=damage),
            history=few_points(files.journal, damage=damage),
            manifest=RecordedManifest.read(files.run_dir / MANIFEST),
            damaged=damage.told(),
        )


def _begun(start: Record | None, run_dir: Path) -> tuple[str, Mapping[str, Scalar]]:
    """The experiment's name and the settings; if the record of the start is damaged, as the files beside it say."""
    if start is not None:
        return str(start.data["experiment"]), start.data["params"]
    if not (run_dir / "spec.yaml").is_file():
        return run_dir.parent.name, {}
    from vlatrack.spec.load import load_spec  # takes half a second

    spec = load_spec(run_dir / "spec.yaml", stored=True)
    return spec.name, flatten(spec)


def _repository(content: Mapping[str, Any]) -> Repository:
    return Repository(
        root=_text(content.get("root")),
        remote=_text(content.get("remote")),
        commit=str(content["commit"]),
        branch=_text(content.get("branch")),
        diff=str(content["diff"]),
        diff_cut=bool(content.get("diff_cut", False)),
        untracked=_texts(content.get("untracked")),
        untracked_left_out=[str(name) for name in content.get("untracked_left_out", ())],
        submodules=_texts(content.get("submodules")),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _texts(value: Mapping[str, Any] | None) -> dict[str, str]:
    return {str(key): str(item) for key, item in (value or {}).items()}
