"""LeRobot datasets of the Hugging Face hub, in the commit that a branch or tag stands for now."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlatrack.data.progress import hub_bars
from vlatrack.errors import DataError

FILES = ("meta/*", "data/*", "videos/*")


@dataclass(frozen=True)
class HubDataset:
    """A dataset of the hub as it is on this machine."""

    repo: str
    commit: str
    folder: Path

    @property
    def name(self) -> str:
        """`owner/name@commit`: what it was, whatever the branch becomes."""
        return f"{self.repo}@{self.commit}"


def fetch(repo: str, revision: str | None = None) -> HubDataset:
    """Download what is not here yet, into the hub's own cache; without a network, take what is there.

    Args:
        repo: `owner/name`.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        DataError: there is no such dataset or revision, this login may not read it, or the hub cannot be reached and
            no whole copy is here.
    """
    from huggingface_hub import snapshot_download

    with _clear_errors(repo, revision):
        wanted, bars = list(FILES), hub_bars(repo)
        folder = Path(
            snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted, tqdm_class=bars)
        )
    return HubDataset(repo, folder.name, folder)


@contextmanager
def _clear_errors(repo: str, revision: str | None) -> Iterator[None]:
    """The hub's errors as one line each, in which nothing is quoted that may hold a token."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        problem = "its owner has to grant access: ask for it on its page, and log in (hf auth login)"
    except RepositoryNotFoundError:
        problem = "the hub has no such dataset that this login may see; check the name, or log in (hf auth login)"
    except RevisionNotFoundError:
        problem = f"has no branch, tag or commit {revision!r}; leave revision out for the main branch"
    except IncompleteSnapshotError:
        problem = "only a part of it is here, and the hub cannot be reached; try again with a network"
    except LocalEntryNotFoundError as error:
        cause = type(error.__cause__).__name__ if error.__cause__ else "it is not here"
        problem = f"the hub cannot be reached ({cause}) and no copy is here; check the network, or HF_ENDPOINT"
    except HFValidationError:
        problem = "is no name of a dataset; write repo: owner/name"
    except Exception as error:  # those of its HTTP client, which change from version to version, and of the disk
        reason = getattr(error, "strerror", None) or type(error).__name__
        problem = f"cannot be fetched ({reason}); check the network, the login (hf auth login) and the disk"
    else:
        return
    raise DataError(f"{repo}: {problem}")
