"""Policies on the Hugging Face hub: fetched by name, and pushed."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vlatrack.errors import CheckpointError, SpecError, VlatrackError
from vlatrack.runner.card import CARD, name_of_place
from vlatrack.runner.hub_names import PREFIX, is_hub_name, parse_hub_name
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.load import dump_spec, load_spec
from vlatrack.spec.publish import publishable
from vlatrack.tracking.backends.mlflow.model_files import MLMODEL, REQUIREMENTS
from vlatrack.tracking.privacy import redact, secret_within
from vlatrack.training.checkpoint.manifest import FILES, inside, is_needed_to_resume_only, read_manifest
from vlatrack.training.checkpoint.policy import POLICY, SPEC

NOT_IN_MANIFEST = (CARD, MLMODEL, REQUIREMENTS)
"""Files of an exported policy that may be edited: they do not decide how it acts."""


@dataclass(frozen=True)
class HubPolicy:
    """A policy on the hub: `organisation/name`, or `organisation/name@revision`."""

    repository: str
    revision: str | None = None

    @classmethod
    def of_name(cls, text: str) -> Self:
        """`organisation/name`, with `hub:` before it and `@revision` behind it or not; SpecError for anything else."""
        return cls(*parse_hub_name(text))

    @classmethod
    def named_by(cls, place: str | Path) -> Self | None:
        """The policy that a place means, which begins with `hub:` or is no file or folder here; None: another place."""
        text = str(place)
        if text.startswith(PREFIX):
            return cls.of_name(text)
        return cls.of_name(text) if is_hub_name(text) and not Path(text).exists() else None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}{f'@{self.revision}' if self.revision else ''}"

    def fetch(self) -> Path:
        """A folder with the policy's files, from the hub or from its cache here; they are verified when it is opened.

        Raises:
            CheckpointError: the hub has no such policy, or cannot be reached.
        """
        from huggingface_hub import hf_hub_download

        with self._clear_errors("fetched"):
            listing = Path(hf_hub_download(self.repository, FILES, revision=self.revision))
            commit = listing.parent.name  # of which all files are, though somebody may push meanwhile
            for name in read_manifest(listing.parent).sha256:
                inside(listing.parent, name)
                hf_hub_download(self.repository, name, revision=commit)
        return listing.parent

    def push(self, folder: Path, *, private: bool) -> str:
        """Upload an exported policy, in one commit, without places of this machine; returns its address.

        Raises:
            CheckpointError: the login may not write there, the hub cannot be reached, or a repository that is to be
                private is public.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api, files = HfApi(), published_files(folder)
        with self._clear_errors("pushed"):
            url = str(api.create_repo(self.repository, private=private or None, exist_ok=True))
            if private and not api.model_info(self.repository).private:
                raise CheckpointError(f"{self}: is public; make it private there first, or leave out --private")
            added = [CommitOperationAdd(name, content) for name, content in files.items()]
            digest = read_manifest(folder).policy_sha256
            api.create_commit(self.repository, added, commit_message=f"Policy {digest[:12]}", revision=self.revision)
        return url

    def refuse_code(self, spec: ExperimentSpec) -> None:
        """Raise CheckpointError if a name in its spec, which may be a stranger's, decides which code is called here."""
        if spec.backbone.kind == "custom" or spec.loss.terms:
            raise CheckpointError(
                f"{self}: names code that would be run here (a custom backbone or loss term); look at it, and load the "
                "folder that huggingface_hub.snapshot_download gives you"
            )

    @contextmanager
    def _clear_errors(self, what: str) -> Iterator[None]:
        from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError

        try:
            yield
        except VlatrackError:
            raise
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"{self}: no such folder here, and no such policy at the hub that this login may see"
            ) from error
        except RemoteEntryNotFoundError as error:
            raise CheckpointError(f"{self}: has no {FILES}; it is no policy that vlatrack has exported") from error
        except Exception as error:  # that of its HTTP client, which changes from version to version, and its own
            reason = redact((str(error).splitlines() or [type(error).__name__])[0])[:200]
            raise CheckpointError(
                f"{self}: cannot be {what} ({reason}); check the name, the network and the login (hf auth login)"
            ) from error


def published_files(folder: Path) -> dict[str, bytes | Path]:
    """What is uploaded of an exported policy, by name: spec and lineage without places of this machine and without
    trackers, all else as it is.

    Raises:
        CheckpointError: the folder holds no exported policy.
        SpecError: the spec holds the value of an environment variable that is a secret.
    """
    manifest = read_manifest(folder)
    if any(map(is_needed_to_resume_only, manifest.sha256)):
        raise CheckpointError(f"{folder}: is a checkpoint with its optimiser; give a FOLDER to export it to")
    spec = dump_spec(publishable(load_spec(folder / SPEC, stored=True)))
    if variable := secret_within(spec):
        raise SpecError(f"{folder / SPEC}: holds the value of {variable}, and would be published; remove it")
    description = json.loads((folder / POLICY).read_text())
    for parent in description["lineage"]:
        parent["checkpoint"] = name_of_place(Path(parent["checkpoint"]))
    changed = {SPEC: spec.encode(), POLICY: (json.dumps(description, indent=1) + "\n").encode()}
    listing = json.loads((folder / FILES).read_text())
    for name, content in changed.items():
        listing["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    files: dict[str, bytes | Path] = {name: folder / name for name in manifest.sha256}
    files |= {name: folder / name for name in NOT_IN_MANIFEST if (folder / name).is_file()}
    return files | changed | {FILES: (json.dumps(listing, indent=1) + "\n").encode()}
