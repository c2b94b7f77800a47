"""What is evaluated in a simulator: the policy of a checkpoint, or one behind a server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from vlatrack.builders.evaluation import build_execution, build_request, build_view
from vlatrack.envs.base import EnvironmentInfo
from vlatrack.envs.base import Observation as Seen
from vlatrack.errors import SpecError
from vlatrack.inference.observation import Interface, Observation
from vlatrack.inference.policy import ChunkPolicy
from vlatrack.runner.acting import Policy
from vlatrack.runner.directory import RunDirectory
from vlatrack.serving.connection import shown_address
from vlatrack.serving.remote import PolicyServer, RemotePolicy
from vlatrack.spec.evaluation import EvaluationSpec

RESULTS = Path("evaluations")
"""Where the results of policies behind servers go, in the current directory."""
_SCHEMES = ("ws://", "wss://")


@dataclass(frozen=True)
class Subject:
    """A policy, and where its results belong."""

    name: str  # for people
    folder: Path  # of the results, unless another one is wanted
    sha256: str | None  # digest of the policy, where it is known
    policy_for: Callable[[EnvironmentInfo], ChunkPolicy]  # raises VlatrackError
    together: bool = False  # decide for several episodes in one forward pass
    checkpoint: Path | None = None
    run: RunDirectory | None = None  # that gets the metrics
    server: Mapping[str, str] | None = None  # its address, without a login, and the digest of its metadata
    route: str | None = None  # of a server that says it
    close: Callable[[], None] = field(default=lambda: None)


def is_address(path: str | Path) -> bool:
    """Whether it is that of a server."""
    return str(path).startswith(_SCHEMES)


def stored_subject(spec: EvaluationSpec, checkpoint: Path, run: RunDirectory | None) -> Subject:
    """The policy of a checkpoint or of an exported folder.

    Raises:
        VlatrackError: it is damaged, or cannot act as the evaluation says.
    """
    acting = spec.acting
    policy = Policy.load(checkpoint, dtype=acting.dtype, compile=acting.compile, static_cache=acting.static_cache)
    build_execution(spec).check(policy.interface.horizon)
    if run is None:
        folder = checkpoint / "evaluation" / spec.label
    else:
        folder = run.evaluation / f"{spec.label}-{checkpoint.name}"
    return Subject(
        policy.name,
        folder,
        policy.sha256,
        lambda _: policy,
        together=policy.device.type != "cpu",  # where it pays
        checkpoint=checkpoint,
        run=run,
    )


def served_subject(spec: EvaluationSpec, address: str, *, api_key: str | None, timeout_s: float) -> Subject:
    """The policy of a server that speaks openpi's protocol.

    Raises:
        VlatrackError: there is no such server, or it cannot be asked.
    """
    if spec.acting.expert:
        raise SpecError(f"acting.expert: the expert needs no policy at {shown_address(address)}; leave one of them out")
    server = PolicyServer(address, api_key=api_key, timeout_s=timeout_s)
    parts = urlsplit(server.address)
    place = f"{parts.hostname}-{parts.port}" if parts.port else parts.hostname
    announced = server.metadata if RemotePolicy.is_announced(server.metadata) else {}

    def policy_for(info: EnvironmentInfo) -> RemotePolicy:
        policy = RemotePolicy(server, build_request(spec) if not announced else None, _example(spec, info))
        build_execution(spec).check(policy.interface.horizon)
        return policy

    return Subject(
        f"{announced.get('policy')} at {server.address}" if announced else server.address,
        RESULTS / f"{spec.label}-{place}",
        announced.get("policy_sha256"),
        policy_for,
        server={"address": server.address, "metadata_sha256": server.metadata_sha256},
        route=announced.get("route"),
        close=server.close,
    )


def _example(spec: EvaluationSpec, info: EnvironmentInfo) -> Observation:
    """An observation of this simulator, all of it zeros."""
    images = {camera: np.zeros((*info.cameras.get(camera, (64, 64)), 3), np.uint8) for camera in spec.cameras}
    seen = Seen(images, np.zeros(info.state_dim, np.float32), str(spec.suite.tasks[0]))
    interface = Interface(tuple(spec.cameras.values()), info.state_dim, 1, 1, info.action_dim)
    return build_view(spec).of(seen, interface)
