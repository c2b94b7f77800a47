"""`vlatrack validate` and `vlatrack schema`: check an experiment, and describe every setting."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlatrack.cli.completion import complete_setting
from vlatrack.errors import USER_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from vlatrack.builders.closed_loop import ClosedLoop
    from vlatrack.spec.data import SplitSource
    from vlatrack.spec.experiment import ExperimentSpec
    from vlatrack.spec.policy import BackboneSpec

ExperimentFile = Annotated[Path, typer.Argument(metavar="FILE", help="The experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the file, such as optim.lr=1e-5.",
        show_default=False,
        autocompletion=complete_setting,
    ),
]


def validate(
    file: ExperimentFile,
    overrides: Overrides = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Predict the GPU memory of the training; no GPU and no data needed.")
    ] = False,
    gpus: Annotated[
        str, typer.Option(metavar="N", help="With --memory: the number of GPUs, or machines x GPUs, such as 2x8.")
    ] = "1",
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Say whether the training fits into GPUs of this size (80GB, 80GiB, 24G), and if not, which settings "
            "make it fit; the exit code then is 2.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Check an experiment, an evaluation in a simulator or a sweep, and show a summary of it.

    Each mistake is one line with its place, and the exit code is 2. Missing data is only noted, so that an experiment
    can be checked before its data exists.

    Example: [bold]vlatrack validate experiments/quickstart.yaml train.epochs=2[/bold]

    Its memory on a GPU: [bold]vlatrack validate experiments/quickstart.yaml --memory --gpu-memory 24GB[/bold]

    On each of eight: [bold]vlatrack validate experiments/libero_goal.yaml --memory --gpus 8 --gpu-memory 40GB[/bold]
    """
    from rich.console import Console

    from vlatrack.cli.memory import parse_gpus, parse_memory, show_memory
    from vlatrack.spec.load import is_evaluation, load_spec
    from vlatrack.spec.sweep_file import is_sweep

    words = overrides or ()
    if is_sweep(file):
        console = Console(markup=False, highlight=False)
        console.print(_overview_table(_sweep_overview(file, words)))
        console.print("OK")
        return
    if is_evaluation(file):
        console = Console(markup=False, highlight=False)
        console.print(_overview_table(_evaluation_overview(file, words)))
        console.print("OK")
        return
    spec = load_spec(file, words)
    limit = None if gpu_memory is None else (gpu_memory, parse_memory(gpu_memory))
    console = Console(markup=False, highlight=False)
    console.print(_overview_table(_overview(spec)))
    if memory or limit is not None or gpus != "1":
        from vlatrack.cli.progress import prepare_process

        prepare_process()
        if not show_memory(console, lambda more: load_spec(file, [*words, *more]), parse_gpus(gpus), limit):
            raise typer.Exit(USER_ERROR)
    console.print("OK")


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this file instead of the terminal.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="The schema of a sweep instead of an experiment.")] = False,
) -> None:
    """Print the JSON Schema of an experiment or a sweep, for completion and checks in editors.

    Example: [bold]vlatrack schema --output experiment.schema.json[/bold]
    """
    import json

    from vlatrack.errors import SpecError
    from vlatrack.spec.experiment import ExperimentSpec
    from vlatrack.spec.sweep import SweepSpec

    model = SweepSpec if sweep else ExperimentSpec
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{output}: cannot be written ({error.strerror}); choose another --output") from None
    typer.echo(f"wrote {output}")


def _overview_table(rows: dict[str, str]) -> "Table":
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _evaluation_overview(file: Path, overrides: "Sequence[str]") -> dict[str, str]:
    from vlatrack.builders.simulator import build_simulator, check_tasks, known_tasks
    from vlatrack.errors import MissingPackageError, SpecError
    from vlatrack.spec.evaluation import set_digest
    from vlatrack.spec.load import load_evaluation

    spec = load_evaluation(file, overrides)
    if (tasks := known_tasks(spec)) is not None:
        check_tasks(spec, tasks)
    try:
        versions = build_simulator(spec).versions
        digest = set_digest(spec.set_settings(), versions)[:12]
        simulator = ", ".join(f"{name} {version}" for name, version in versions.items()) or "of no package"
    except (MissingPackageError, SpecError) as missing:
        digest, simulator = "none without the simulator", f"note: {missing}"
    turned = ", rotated by 180 degrees" if spec.rotation else ""
    shown = ", ".join(f"{camera} as {name}" for camera, name in spec.cameras.items())
    return {
        "evaluation": spec.name,
        "simulator": f"{spec.suite.name} ({simulator})",
        "episode set": digest,
        "tasks": ", ".join(map(str, spec.suite.tasks)),
        "episodes": f"{len(spec.suite.tasks) * spec.episodes}, {spec.episodes} of each task, at most {spec.max_steps} "
        f"env steps after {spec.waits} waits",
        "cameras": f"{shown}, {spec.resolution} x {spec.resolution}{turned}",
        "prompt": spec.prompt,
        "acting": ", ".join(
            f"{key} {_one_line(value)}" for key, value in spec.acting.settings().items() if value not in (None, False)
        ),
    }


def _sweep_overview(file: Path, overrides: "Sequence[str]") -> dict[str, str]:
    from vlatrack.errors import SpecError
    from vlatrack.spec.sweep_file import load_sweep

    if overrides:
        raise SpecError(f"{file}: a sweep; overrides of its experiment stand in it, under overrides")
    sweep = load_sweep(file)
    judged = ", ".join(f"{objective.metric} ({objective.take})" for objective in sweep.spec.objectives)
    pruner = sweep.spec.pruner
    return {
        "sweep": sweep.spec.name,
        "experiment": str(sweep.experiment_file),
        "space": ", ".join(axis.path for axis in sweep.axes),
        "objectives": judged,
        "trials": f"{sweep.trials} with {len(sweep.seeds)} seed(s), {sweep.spec.parallel} side by side",
        "sampler": sweep.spec.sampler.kind,
        "pruner": "none" if pruner is None else f"{pruner.kind}, by {sweep.spec.pruned_by}",
    }


def _one_line(value: object) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "(" + ", ".join(f"{key} {_one_line(part)}" for key, part in value.items() if part not in (None, False)) + ")"


def _overview(spec: "ExperimentSpec") -> dict[str, str]:
    from vlatrack.builders.closed_loop import load_closed_loops
    from vlatrack.spec.identity import canonical_hash

    closed_loops = [_describe_closed_loop(loop) for loop in load_closed_loops(spec)]
    head, train = spec.action_head, spec.train
    return {
        "experiment": spec.name,
        "hash of settings": canonical_hash(spec)[:12],
        "backbone": _describe_backbone(spec.backbone),
        "action chunk": f"{head.time_horizon} steps of {head.action_dim} numbers",
        "bins": f"{spec.tokenizer.bins}",
        "data.train": _describe_source(spec.data.train),
        "data.val_ind": _describe_source(spec.data.val_ind),
        "data.val_ood": _describe_source(spec.data.val_ood),
        **({"images": "streamed: read and encoded while training"} if spec.data.images == "stream" else {}),
        "batch": f"{train.batch_size} samples" + (f", {train.micro_batch} at once" if train.micro_batch else ""),
        "epochs": f"{train.epochs}" + (f", at most {train.max_steps} steps" if train.max_steps else ""),
        **({"in simulators": "; ".join(closed_loops)} if closed_loops else {}),
        "backends": ", ".join(backend.kind for backend in spec.tracking.backends) or "none (journal only)",
    }


def _describe_closed_loop(loop: "ClosedLoop") -> str:
    from vlatrack.errors import MissingPackageError, SpecError

    every = loop.settings.every_epochs
    note = ""
    try:
        loop.digest()
    except (MissingPackageError, SpecError) as missing:
        note = f" (note: {missing})"
    return f"{loop.label}, {loop.episodes} episodes every {f'{every} epochs' if every > 1 else 'epoch'}{note}"


def _describe_backbone(backbone: "BackboneSpec") -> str:
    if backbone.kind == "custom":
        return f"custom, {backbone.target}"
    sizes = backbone.sizes.model_dump(exclude_none=True) if backbone.sizes is not None else {}
    changed = "".join(f", {name} {size}" for name, size in sizes.items())
    return f"{backbone.kind}, {backbone.init}: {backbone.preset or backbone.checkpoint}{changed}"


def _describe_source(source: "SplitSource | None") -> str:
    if source is None:
        return "none"
    if source.kind == "mixture":
        return "mixture of " + "; ".join(map(_describe_source, source.sources))
    if source.kind == "custom":
        return f"custom, {source.target}"
    if source.kind == "lerobot" and source.path is None:
        return f"{source.kind}, {source.repo} of the hub, {source.revision or 'main'}"
    path = str(source.path)
    is_there = "://" in path or Path(path).exists()
    return f"{source.kind}, {path}{'' if is_there else ' (note: not there yet)'}"
