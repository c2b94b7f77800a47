"""A double of the Hugging Face hub on this machine: it creates repositories, takes commits and serves files."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from http_double import JsonHandler, serving

TOKEN = "hf_" + "ofTheDouble0123456789"


@dataclass
class HubDouble:
    """Its repositories: visibility, and the files of the newest commit."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def sha(self, repository: str) -> str:
        listing = repr(sorted((name, hashlib.sha1(c).hexdigest()) for name, c in self.files[repository].items()))
        return hashlib.sha1(listing.encode()).hexdigest()

    def description(self, repository: str) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in sorted(self.files[repository])]
        about = {"id": repository, "private": self.private[repository], "sha": self.sha(repository)}
        return about | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0}

    def commit(self, repository: str, body: bytes) -> dict[str, Any]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file", line
                self.files[repository][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"commitUrl": f"{self.url}/{repository}/commit/1", "commitOid": self.sha(repository), "hookOutput": ""}


@contextmanager
def hub_double() -> Iterator[HubDouble]:
    """The double, for as long as the context lasts."""
    double = HubDouble()
    with serving(_handler(double)) as double.url:
        yield double


def _handler(double: HubDouble) -> type[JsonHandler]:
    class Handler(JsonHandler):
        def do_POST(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid credentials"}, 401)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if name in double.files:
                    return self.answer({"url": f"{double.url}/{name}"}, 409)
                double.files[name], double.private[name] = (
                    {},
                    asked.get("visibility") == "private" or bool(asked.get("private")),
                )
                return self.answer({"url": f"{double.url}/{name}", "name": name})
            if self.path == "/api/validate-yaml":  # of the card
                assert json.loads(body)["content"].startswith("---\n"), body
                return self.answer({"errors": [], "warnings": []})
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
            assert found is not None, self.path
            if found[2] == "commit":
                return self.answer(double.commit(found[1], body))
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self.answer({"files": modes})

        def do_GET(self) -> None:  # noqa: N802
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                if found[1] not in double.files:
                    return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
                return self.answer(double.description(found[1]))
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            if found is None or found[1] not in double.files:
                return self.answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
            content = double.files[found[1]].get(found[2])
            if content is None:
                return self.answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(content, ETag=etag, X_Repo_Commit=double.sha(found[1]))

        do_HEAD = do_GET  # noqa: N815

    return Handler
