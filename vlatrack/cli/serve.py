"""`vlatrack serve`: a policy behind a port, for robots and simulators."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlatrack.cli.acting_options import (
    CompileOption,
    Device,
    DeviceOption,
    DtypeOption,
    StaticCacheOption,
    load_policy,
)
from vlatrack.cli.evaluate import Checkpoint, api_key_in
from vlatrack.errors import ServingError

if TYPE_CHECKING:
    import socket

    from vlatrack.runner.acting import Policy
    from vlatrack.serving.service import Service


class Route(StrEnum):
    """How chunks are made."""

    HEAD = "head"
    TOKENS = "tokens"


Evaluation = Annotated[
    Path | None,
    typer.Option(
        metavar="EVALUATION.yaml",
        help="What clients will do; a policy that was trained on other images, prompts or actions is refused.",
        show_default=False,
    ),
]

Fps = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        help="Env steps of the clients in a second, for a policy that was trained with data.history_deltas.",
        show_default=False,
    ),
]
ApiKeyEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help="Variable with a key that clients must give.", show_default=False)
]


def serve(
    policy: Annotated[
        str,
        typer.Argument(
            metavar="POLICY",
            help="Run directory runs/<experiment>/<run-id>, one of its checkpoints, or an exported policy.",
        ),
    ],
    checkpoint: Checkpoint = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    route: Annotated[Route, typer.Option(help="The continuous head, or the action tokens.")] = Route.HEAD,
    replan_every: Annotated[
        int | None,
        typer.Option(min=1, help="Actions of a chunk that clients of vla-eval get.", show_default="whole chunk"),
    ] = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(metavar="CAMERA=KEY", help="Where clients have the image of a camera.", show_default=False),
    ] = None,
    observation_param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Asked of benchmarks of vla-eval.", show_default=False),
    ] = None,
    api_key_env: ApiKeyEnv = None,
    fps: Fps = None,
    max_message: Annotated[int, typer.Option(metavar="MIB", min=1, max=1024, help="Largest message, in MiB.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Most observations in one pass.")] = 32,
    device: DeviceOption = Device.AUTO,
    dtype: DtypeOption = None,
    compile_layers: CompileOption = False,
    static_cache: StaticCacheOption = False,
    evaluation: Evaluation = None,
    force: Annotated[bool, typer.Option("--force", help="Serve it anyway; /metadata records it.")] = False,
) -> None:
    """Serve a policy over WebSocket, to clients of openpi and of vla-eval on the same port. SIGTERM or Ctrl-C ends it.

    Paths: /openpi and /vla-eval; at any other one, a client that speaks first is one of vla-eval.

    Plain HTTP: /healthz, /metadata, /metrics.

    Examples:

    [bold]vlatrack serve runs/metaworld-quickstart/20260101-120000-ab12[/bold]

    [bold]vlatrack serve policy --port 9000 --camera corner2=observation/image --api-key-env POLICY_KEY[/bold]
    """
    from vlatrack.serving.packages import require_packages
    from vlatrack.serving.port import open_port

    require_packages()
    asked = _evaluation(evaluation, force=force)
    api_key, cameras = api_key_in(api_key_env), _pairs("--camera", camera or ())
    params = {key: _value(text) for key, text in _pairs("--observation-param", observation_param or ()).items()}
    with open_port(host, port) as opened:  # fails now, not after the policy is loaded
        import asyncio

        from vlatrack.cli.progress import prepare_process

        prepare_process()
        from vlatrack.serving.server import ServerSettings, serve_until_signal

        loaded = load_policy(policy, checkpoint, device, dtype, compiles=compile_layers, static_cache=static_cache)
        settings = ServerSettings(
            route=route.value,
            replan_every=replan_every,
            cameras=cameras,
            observation_params=params,
            api_key=api_key,
            largest_message=max_message * 2**20,
            largest_batch=max_batch,
            fps=fps,
            forced=asked(loaded),
        )

        def say_ready(service: "Service") -> None:
            _say_ready(service, opened, has_key=api_key is not None)

        latencies = asyncio.run(serve_until_signal(loaded, opened, settings, on_ready=say_ready))
    typer.echo(latencies.line())


def _say_ready(service: "Service", opened: "socket.socket", *, has_key: bool) -> None:
    host, port = opened.getsockname()[:2]
    shown, metadata = f"[{host}]" if ":" in host else host, service.metadata
    typer.echo(f"policy    {metadata['policy']}, {metadata['policy_sha256'][:12]}")
    for name, keys in metadata["camera_keys"].items():
        typer.echo(f"camera    {name}: {' or '.join(keys)}")
    moments = f"{metadata['history']} moments"
    if metadata["history_deltas"] is not None:
        moments += f" at {', '.join(f'{delta:g}' for delta in metadata['history_deltas'])} s"
    typer.echo(f"sees      {moments}, state {metadata['state_dim'] or 'none'}")
    for text in metadata["forced"]:
        typer.echo(f"forced    {text}")
    typer.echo(f"answers   chunks of {metadata['horizon']} x {metadata['action_dim']}, route {metadata['route']}")
    if not has_key and not host.startswith("127.") and host != "::1":
        typer.echo("open      to everybody who reaches this address; --api-key-env asks for a key")
    typer.echo(f"serving   ws://{shown}:{port}  (SIGTERM or Ctrl-C ends it)")


def _evaluation(file: Path | None, *, force: bool) -> "Callable[[Policy], list[str]]":
    """What compares a policy with an evaluation, which is read now: it tells where they differ."""
    if file is None:
        if force:
            raise ServingError("--force: is for --evaluation EVALUATION.yaml, with which the policy is compared")
        return lambda _: []
    from vlatrack.spec.load import load_evaluation

    spec = load_evaluation(file)

    def differences(policy: "Policy") -> list[str]:
        from vlatrack.runner.fit import check_fit

        return check_fit(spec, policy.interface, policy=policy.name, force=force)

    return differences


def _pairs(option: str, words: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, is_pair, value = word.partition("=")
        if not (name and is_pair and value):
            raise ServingError(f"{option} {word}: expected NAME=VALUE")
        pairs[name] = value
    return pairs


def _value(text: str) -> Any:
    """true, 7 and 0.5 are what they are in JSON; anything else is text."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text
