"""A double of the Hugging Face hub on this machine that serves datasets: revisions, files, and who may see them."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from http_double import JsonHandler, serving


@dataclass
class HubDatasets:
    """Its repositories: commits by branch, tag and themselves, and the files of each commit."""

    url: str = ""
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    served: list[str] = field(default_factory=list)  # the files that were asked for
    cut: set[str] = field(default_factory=set)  # files of which the second half never comes

    def push(self, repo: str, folder: Path, *revisions: str) -> str:
        """Commit a folder and point branches and tags there; returns the commit."""
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        content = repr(sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items()))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.files[commit] = files
        self.revisions.setdefault(repo, {}).update(dict.fromkeys((commit, *revisions), commit))
        return commit


@contextmanager
def hub_datasets() -> Iterator[HubDatasets]:
    """The double, for as long as the context lasts."""
    double = HubDatasets()
    with serving(_handler(double)) as double.url:
        yield double


def _handler(double: HubDatasets) -> type[JsonHandler]:
    class Handler(JsonHandler):
        def do_GET(self) -> None:  # noqa: N802
            path = self.path.partition("?")[0]
            found = re.fullmatch(
                r"(?:/api)?/datasets/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree|resolve)/(?P<revision>[^/]+)(?:/(?P<name>.+))?",
                path,
            )
            if found is None or found["repo"] not in double.revisions:
                return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            if found["repo"] in double.gated:
                return self.answer({"error": "gated"}, 403, X_Error_Code="GatedRepo")
            commit = double.revisions[found["repo"]].get(found["revision"])
            if commit is None:
                return self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
            files = double.files[commit]
            match found["what"]:
                case "revision":
                    siblings = [{"rfilename": name} for name in sorted(files)]
                    return self.answer({"id": found["repo"], "sha": commit, "siblings": siblings, "tags": []})
                case "tree":
                    return self.answer([_entry(name, content) for name, content in sorted(files.items())])
            content = files.get(found["name"] or "")
            if content is None:
                return self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            if self.command == "GET":
                double.served.append(found["name"])
            sent = len(content) // 2 if found["name"] in double.cut else None
            return self.answer(content, sent=sent, ETag=f'"{_etag(content)}"', X_Repo_Commit=commit)

        do_HEAD = do_GET  # noqa: N815

    return Handler


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
