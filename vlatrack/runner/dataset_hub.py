"""Datasets on the Hugging Face hub: pushed with a card, and pulled by their commit."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from vlatrack import __version__
from vlatrack.data.digests import content_fingerprint, digests_of
from vlatrack.data.formats.lerobot.layout import DatasetInfo, read_info
from vlatrack.data.progress import hub_bars
from vlatrack.errors import DataError, VlatrackError
from vlatrack.runner.hub_names import parse_hub_name
from vlatrack.tracking.privacy import redact, secret_within

CARD = "README.md"

_CONTENT_FOLDERS = ("meta", "data", "videos", "images")
_CONTENT_SUFFIXES = (".json", ".jsonl", ".parquet", ".mp4", ".png", ".jpg")
_OF_DOWNLOADS = ".cache"  # where huggingface_hub keeps what it knows of the files in a folder


@dataclass(frozen=True)
class Stored:
    """A dataset at the hub, or from there."""

    place: str  # its address, or its folder
    commit: str
    files: int


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub: `organisation/name`, or `organisation/name@revision`."""

    repository: str
    revision: str | None = None

    @classmethod
    def of_name(cls, text: str) -> Self:
        """`organisation/name`, with `@revision` behind it or not; SpecError for anything else."""
        return cls(*parse_hub_name(text))

    @property
    def name(self) -> str:
        """Without the organisation."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repository}{f'@{self.revision}' if self.revision else ''}"

    def push(self, folder: Path, *, public: bool) -> Stored:
        """Upload a LeRobot dataset in one commit, with a card. Only its own files are uploaded, whatever else is there.

        Args:
            public: everybody may see it; else the repository is made private, and has to be.

        Raises:
            DataError: there is no LeRobot dataset, the login may not write there, the hub cannot be reached, or the
                repository is public and the dataset is not to be.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api, digests = HfApi(), _content_digests(folder)
        added = [CommitOperationAdd(name, folder / name) for name in digests]
        card = CommitOperationAdd(CARD, dataset_card(folder, digests, name=self.name).encode())
        with self._clear_errors("pushed"):
            url = api.create_repo(self.repository, private=not public, exist_ok=True, repo_type="dataset")
            if not public and not api.dataset_info(self.repository).private:
                raise DataError(f"{self}: is public; make it private there first, or give --public")
            message = f"Dataset {content_fingerprint(digests)[:12]}"
            commit = api.create_commit(
                self.repository, [card, *added], commit_message=message, repo_type="dataset", revision=self.revision
            )
        return Stored(str(url), str(commit.oid), len(digests))

    def pull(self, folder: Path) -> Stored:
        """Download the files of one commit; `folder` appears when all are there. After an end before that the same
        call goes on with what it has.

        Raises:
            DataError: something is at `folder`, the hub has no such dataset, or cannot be reached.
        """
        from huggingface_hub import HfApi, snapshot_download

        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise DataError(f"{folder}: is there already; give another folder (-o), or remove it")
        with self._clear_errors("pulled"):
            found = HfApi().dataset_info(self.repository, revision=self.revision)
            commit, names = str(found.sha), [sibling.rfilename for sibling in found.siblings or ()]
            for name in names:
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise DataError(f"{self}: {name!r} leaves the dataset's folder; do not trust this dataset")
            unfinished = folder.with_name(f".{folder.name}.{commit[:12]}.part")
            unfinished.mkdir(parents=True, exist_ok=True)
            snapshot_download(
                self.repository,
                revision=commit,
                repo_type="dataset",
                local_dir=unfinished,
                tqdm_class=hub_bars(self.repository),
            )
        if (unfinished / _OF_DOWNLOADS).exists():
            shutil.rmtree(unfinished / _OF_DOWNLOADS)
        unfinished.rename(folder)
        return Stored(str(folder), commit, len(names))

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            yield
        except VlatrackError:
            raise
        except RepositoryNotFoundError as error:
            raise DataError(f"{self}: no such dataset at the hub that this login may see (hf auth login)") from error
        except RevisionNotFoundError as error:
            raise DataError(f"{self}: the dataset has no such revision; leave it out for the newest") from error
        except OSError as error:
            if error.filename is not None:
                raise  # of a file here
            raise self._unreached(what, error) from error
        except Exception as error:  # that of its HTTP client, which changes from version to version, and its own
            raise self._unreached(what, error) from error

    def _unreached(self, what: str, error: Exception) -> DataError:
        reason = redact((str(error).splitlines() or [type(error).__name__])[0])[:200]
        return DataError(
            f"{self}: cannot be {what} ({reason}); check the name, the network and the login (hf auth login)"
        )


def dataset_card(folder: Path, digests: Mapping[str, str], *, name: str) -> str:
    """The README.md of a dataset at the hub: what it holds and where it came from. One in its folder with a header for
    the hub is taken as it is, any other is put at the end.

    Raises:
        DataError: it holds the value of an environment variable that is a secret.
    """
    own = folder / CARD
    text = own.read_text(encoding="utf-8", errors="replace") if own.is_file() else ""
    if variable := secret_within(text):
        raise DataError(f"{own}: holds the value of {variable}, and would be published; remove it")
    return text if text.startswith("---\n") else _card(read_info(folder), digests, name, text)


def _card(info: DatasetInfo, digests: Mapping[str, str], name: str, text: str) -> str:
    features = [
        f"| `{key}` | {feature.dtype} | {' x '.join(map(str, feature.shape))} |"
        for key, feature in info.features.items()
    ]
    lines = [
        "---",
        "task_categories: [robotics]",
        "tags: [LeRobot, vlatrack]",
        "configs:",
        "- {config_name: default, data_files: data/*/*.parquet}",
        "---",
        "",
        f"# {name}",
        "",
        f"{info.total_episodes:,} episodes, {info.total_frames:,} steps at {info.fps:g} a second; layout of LeRobot.",
        "",
        "| feature | type | shape |",
        "|---|---|---|",
        *features,
        "",
        f"Pushed with vlatrack {__version__}; the SHA-256 over its files, as `vlatrack data info` shows it:",
        f"`{content_fingerprint(digests)}`.",
    ]
    return "\n".join([*lines, *(["", text.strip()] if text.strip() else []), ""])


def _content_digests(folder: Path) -> dict[str, str]:
    """The files of a LeRobot dataset; raises DataError if one of them is elsewhere, and a link leads there."""
    read_info(folder)
    files = [file for part in _CONTENT_FOLDERS for file in (folder / part).rglob("*")]
    files = [file for file in files if file.suffix in _CONTENT_SUFFIXES and file.is_file()]
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DataError(
                f"{file}: is a link that leaves the dataset; copy what it leads to, if it is to be published"
            )
    return digests_of(folder, files)
