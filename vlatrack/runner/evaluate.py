"""Evaluate a checkpoint of a run on its validation splits."""

import json
from dataclasses import dataclass
from pathlib import Path

from vlatrack import builders
from vlatrack.data.cache import CodeCache
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.display import Display, SilentDisplay
from vlatrack.runner.observer import evaluate_split
from vlatrack.schema.metrics import TRAIN
from vlatrack.spec.models import OpenLoopSpec
from vlatrack.training.checkpoints import load_policy, read_state


@dataclass(frozen=True)
class Evaluation:
    """Means of one checkpoint."""

    checkpoint: Path
    metrics: dict[str, float]  # by schema name with the split's prefix
    file: Path  # where they were written, as JSON


def evaluate_run(path: Path, *, checkpoint: str = "best", display: Display | None = None) -> Evaluation:
    """Open-loop evaluation of a checkpoint (``best``, ``last`` or a folder's name) of the run at ``path``.

    Raises:
        VlatrackError: no such run or checkpoint, it is damaged, or the data has changed since.
    """
    display = display or SilentDisplay()
    directory = RunDirectory.open(path)
    spec, chosen = directory.spec(), directory.checkpoint(checkpoint)
    _, stored = read_state(chosen)
    splits = builders.open_splits(spec)
    ranges = builders.value_ranges(spec, splits[TRAIN])
    stored.check_equal(builders.build_identity(spec, ranges), chosen)
    foreign = builders.foreign_checkpoint(spec)
    accelerator = builders.build_accelerator(spec)
    encoding = builders.build_encoding(spec, splits, ranges, foreign, directory.tokenizer, accelerator.device)
    cache = CodeCache(directory.code_cache)
    held_out = {name: split for name, split in splits.items() if name != TRAIN}
    samples = builders.build_samples(spec, held_out, encoding, cache, display.encoding)
    policy = builders.build_policy(spec, foreign)
    load_policy(chosen, policy)
    policy.to(accelerator.device)
    settings = spec.evaluate.open_loop or OpenLoopSpec()
    metrics: dict[str, float] = {}
    for split, split_samples in samples.items():
        display.stage(f"evaluating {chosen.name} on {split}: {len(split_samples)} samples")
        values = evaluate_split(policy, split_samples, settings, accelerator)
        metrics |= {f"{split}_{name}": value for name, value in values.items()}
    file = directory.report / f"evaluation-{chosen.name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"checkpoint": chosen.name, **metrics}, indent=1) + "\n")
    return Evaluation(chosen, metrics, file)
