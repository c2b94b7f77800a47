"""A local double of the part of the W&B server that its client uses; it keeps what a run sends.

The protocol is private, so the double is pinned to wandb 0.31. It stores history by the offset that the client
gives, as the real server does, and can be told to refuse uploads.
"""

import hashlib
import json
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]

WANDB_KEY = "k" * 40
ENTITY = "someone"
_STATES = {None: "running", 0: "finished", 255: "killed"}


@dataclass
class StoredRun:
    """What the server holds of one run."""

    name: str
    project: str
    display_name: str = ""
    config: str = "{}"
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    summary: str = "{}"
    exit_code: int | None = None

    @property
    def rows(self) -> list[Json]:
        """The history in the order of its offsets."""
        return [json.loads(line) for line in self.history]

    @property
    def state(self) -> str:
        return _STATES.get(self.exit_code, "failed")


class WandbDouble:
    """Use as `with WandbDouble() as server:`; `server.url` is the WANDB_BASE_URL."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: dict[str, Json] = {}
        self.uploads: dict[str, bytes] = {}
        self.alerts: list[Json] = []
        self.used: dict[str, list[str]] = {}
        """The collections of the artifacts that are inputs, by run."""
        self.operations: Counter[str] = Counter()
        self.refuse_streams = False
        """Answer 403 to uploads of history: the client then stops uploading for good and raises nothing."""
        self.refused = 0
        self.uploads_to: str | None = None
        """Where the client is told to upload files; None: here."""
        self.views: dict[tuple[str, str], Json] = {}
        """Workspace views by project and name."""
        self.refuse_views: str | None = None
        """What to say instead of keeping a view."""
        self.deleted: set[str] = set()
        """Runs that a person has deleted: nobody finds them, and their ids are not given away again."""
        double = self

        class Handler(_Handler):
            server_double = double

        self._lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "WandbDouble":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, operation: str, variables: Json) -> Json:
        """The `data` of a GraphQL answer."""
        with self._lock:
            self.operations[operation] += 1
            match operation:
                case "Viewer" | "GetDefaultEntity":
                    viewer = {
                        "id": "v",
                        "entity": ENTITY,
                        "username": ENTITY,
                        "email": "",
                        "flags": "{}",
                        "admin": False,
                    }
                    return {"viewer": {**viewer, "teams": {"edges": []}}}
                case "ServerFeaturesQuery":
                    return {"serverInfo": {"features": []}}
                case "UpsertBucket":
                    return {"upsertBucket": self._upsert(variables)}
                case "RunResumeStatus":
                    return {"model": self._resume_status(variables["project"], variables["name"])}
                case "GetRun" | "Run" | "RunHistoryKeys":  # of the public API
                    return {"project": {"run": self._public_run(variables["name"])}}
                case "RunParquetHistory":  # of the public API's scan, which begins with what is in no Parquet file yet
                    live = [{"_step": row["_step"]} for row in self.runs[variables["runName"]].rows]
                    history = {"parquetUrls": [], "liveData": live}
                    return {"project": {"run": {"parquetHistory": history}}}
                case "HistoryPage":
                    first, beyond = variables["minStep"], variables["maxStep"]
                    run = self.runs[variables["run"]]
                    page = [line for line in run.history if first <= json.loads(line)["_step"] < beyond]
                    return {"project": {"run": {"history": page}}}
                case "CreateRunFiles":
                    files = [{"name": name, "uploadUrl": f"{self.url}/files/{name}"} for name in variables["files"]]
                    return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
                case "NotifyScriptableRunAlert":
                    self.alerts.append(variables)
                    return {"notifyScriptableRunAlert": {"success": True}}
                case "View":
                    return {"project": self._project_with_view(variables)}
                case "UpsertView2":
                    return {"upsertView": self._upsert_view(variables)}
                case _ if "Artifact" in operation:
                    return self._artifact_answer(operation, variables)
                case _:
                    return dict.fromkeys(("entity", "organization", "project"))

    def stream(self, run_name: str, body: Json) -> None:
        """Store one upload of history and summary."""
        with self._lock:
            run = self.runs[run_name]
            for name, part in body.get("files", {}).items():
                if name == "wandb-history.jsonl":
                    assert part["offset"] <= len(run.history), "a hole in the history"
                    run.history[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
                elif name == "wandb-summary.json":
                    run.summary = part["content"][-1]
            if body.get("complete"):
                run.exit_code = body["exitcode"]

    def _upsert(self, variables: Json) -> Json:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name, variables["project"]))
        run.exit_code = None
        run.display_name = variables.get("displayName") or run.display_name
        run.config = variables.get("config") or run.config
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.tags = variables.get("tags") or run.tags
        return {"bucket": self._bucket(run), "inserted": inserted}

    def _project_with_view(self, variables: Json) -> Json | None:
        """A project is there as soon as a run or a view of it is; a view only by its name and under its type."""
        if variables["projectName"] not in {*(run.project for run in self.runs.values()), *(p for p, _ in self.views)}:
            return None
        known = self.views.get((variables["projectName"], variables["viewName"]))
        is_asked_for = known is not None and variables["viewType"] == known["type"]
        return {"allViews": {"edges": [{"node": known}] if is_asked_for else []}}

    def _upsert_view(self, variables: Json) -> Json:
        place = variables["projectName"], variables["name"]
        known = self.views.get(place)
        assert known is None or variables.get("id") == known["id"], "a second view of this name"
        view_id = f"view-{len(self.views)}" if known is None else known["id"]
        self.views[place] = {**variables, "id": view_id}
        return {"view": {"id": view_id, "name": variables["name"]}, "inserted": known is None}

    def _bucket(self, run: StoredRun) -> Json:
        project = {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}}
        named = {"id": run.name, "name": run.name, "displayName": run.display_name, "description": ""}
        return {
            **named,
            "config": run.config,
            "sweepName": None,
            "project": project,
            "historyLineCount": len(run.history),
        }

    def _resume_status(self, project: str, name: str) -> Json:
        run = None if name in self.deleted else self.runs.get(name)
        model = {"id": "p", "name": project, "entity": {"id": "e", "name": ENTITY}, "bucket": None}
        if run is not None:
            counts = {"logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0}
            tails = {"historyTail": json.dumps(run.history[-1:]), "eventsTail": "[]", "summaryMetrics": run.summary}
            rest = {"tags": run.tags, "notes": "", "wandbConfig": '{"t": 1}'}
            model["bucket"] = {**self._bucket(run), **counts, **tails, **rest}
        return model

    def _public_run(self, name: str) -> Json | None:
        run = self.runs.get(name)
        if run is None or name in self.deleted:
            return None
        last = max((row["_step"] for row in run.rows), default=-1)
        user = {"name": ENTITY, "username": ENTITY}
        known = {
            "state": run.state,
            "tags": run.tags,
            "summaryMetrics": run.summary,
            "systemMetrics": "{}",
            "user": user,
        }
        keys = {"lastStep": last, "keys": {}, "sets": []}
        return {**self._bucket(run), **known, "historyKeys": keys, "createdAt": "2026-01-01T00:00:00", "projectId": 1}

    def _artifact_answer(self, operation: str, variables: Json) -> Json:
        match operation:
            case "CreateArtifact":
                asked = variables["input"]
                known_as = f"{asked['artifactCollectionName']}-{asked['digest']}"  # each collection has its versions
                found = self.artifacts.setdefault(known_as, {"asked": asked, "state": "PENDING"})
                artifact = {
                    "id": known_as,
                    "state": found["state"],
                    "artifactSequence": {"latestArtifact": None},
                }
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                place = f"manifest-{variables['artifactID']}"
                stored = {"id": place, "uploadUrl": f"{self.url}/artifacts/{place}", "uploadHeaders": []}
                return {"createArtifactManifest": {"artifactManifest": {"id": place, "file": stored}}}
            case "CreateArtifactFiles":
                nodes = [{"node": self._artifact_upload(spec)} for spec in variables["input"]["artifactFiles"]]
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case "CommitArtifact":
                self.artifacts[variables["artifactID"]]["state"] = "COMMITTED"
                done = {"id": variables["artifactID"], "digest": variables["artifactID"]}
                return {"commitArtifact": {"artifact": done}}
            case "UseArtifact":
                asked = variables["input"]
                name = self.artifacts[asked["artifactID"]]["asked"]["artifactCollectionName"]
                inputs = self.used.setdefault(asked["runName"], [])
                inputs.extend([name] if name not in inputs else [])
                return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}
            case "ArtifactMembershipByName":
                return {"project": {"artifactCollectionMembership": self._membership(variables["name"])}}
            case "FetchArtifactManifest":
                return {"artifact": {"currentManifest": {"file": {"directUrl": self._manifest_url(variables["id"])}}}}
            case "ArtifactByID":
                return {"artifact": self._artifact_fragment(variables["id"])}
            case _:
                return {"project": None, "artifact": None}

    def _manifest_url(self, known_as: str) -> str:
        return f"{self.url}/artifacts/manifest-{known_as}"

    def _membership(self, name: str) -> Json | None:
        """The newest version of a collection, `latest`."""
        collection, _, version = name.partition(":")
        assert version == "latest", version
        versions = [k for k, v in self.artifacts.items() if v["asked"]["artifactCollectionName"] == collection]
        if not versions:
            return None
        artifact = self._artifact_fragment(versions[-1])
        alias = {"__typename": "ArtifactAlias", "id": "alias", "alias": version}
        kind = {"artifactCollection": artifact["artifactSequence"], "versionIndex": 0, "aliases": [alias]}
        known = {"__typename": "ArtifactCollectionMembership", "id": versions[-1], "createdAt": artifact["createdAt"]}
        return {**known, **kind, "artifact": artifact}

    def file_of_artifact(self, path: str) -> bytes | None:
        """What was uploaded: a manifest at its own address, any other file at one that ends in its MD5 and name."""
        if path in self.uploads:
            return self.uploads[path]
        return next((b for b in self.uploads.values() if hashlib.md5(b).hexdigest() in path.split("/")), None)

    def _artifact_upload(self, spec: Json) -> Json:
        url = f"{self.uploads_to or self.url}/artifacts/{spec['artifactID']}/{spec['name']}"
        parts = {"storagePath": spec["name"], "uploadUrl": url, "uploadHeaders": [], "uploadMultipartUrls": None}
        return {**parts, "artifact": {"id": spec["artifactID"]}}

    def _artifact_fragment(self, known_as: str) -> Json:
        asked = self.artifacts[known_as]["asked"]
        digest = asked["digest"]
        project = {"id": "p", "internalId": "p", "name": asked["projectName"], "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "name": asked["artifactCollectionName"], "project": project}
        kind = {"artifactSequence": collection, "artifactType": {"name": asked["artifactTypeName"]}, "versionIndex": 0}
        text = {"description": None, "metadata": asked["metadata"], "digest": digest, "commitHash": digest}
        times = {
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "ttlDurationSeconds": 0,
            "ttlIsInherited": False,
        }
        rest = {"tags": [], "aliases": [], "historyStep": None, "state": "COMMITTED", "size": 1, "fileCount": 1}
        return {"__typename": "Artifact", "id": known_as, **kind, **text, **times, **rest}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed, or is done
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_double: WandbDouble

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        if self.path == "/graphql":
            query = body["query"]
            operation = body.get("operationName") or query.split("(")[0].split("{")[0].split()[-1]
            if operation == "UpsertBucket" and body["variables"].get("name") in self.server_double.deleted:
                told = f"run {body['variables']['name']} was previously created and deleted; try a new run name"
                return self._reply({"errors": [{"message": told}]}, status=409)
            if operation == "UpsertView2" and self.server_double.refuse_views is not None:
                return self._reply({"errors": [{"message": self.server_double.refuse_views}]}, status=403)
            self._reply({"data": self.server_double.answer(operation, body.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            if self.server_double.refuse_streams or run in self.server_double.deleted:
                self.server_double.refused += 1
                return self._reply({"error": "forbidden"}, status=403)
            self.server_double.stream(run, body)
            self._reply({"exitcode": None, "limits": {}})
        else:
            self._reply({}, status=404)
        return None

    def do_PUT(self) -> None:
        self.server_double.uploads[self.path] = self._body()
        self._reply({})

    def do_GET(self) -> None:
        found = self.server_double.file_of_artifact(self.path)
        if found is None:
            return self._reply({}, status=404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)
        return None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _reply(self, body: Json, *, status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
