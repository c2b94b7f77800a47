"""Evaluate a checkpoint of a run on its validation splits."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from vlatrack import builders
from vlatrack.data.cache import CodeCache
from vlatrack.data.samples import SampleSet
from vlatrack.metrics.schema import TRAIN
from vlatrack.models.policy import VlaPolicy
from vlatrack.runner.directory import RunDirectory
from vlatrack.runner.display import Display, SilentDisplay
from vlatrack.runner.observer import evaluate_split
from vlatrack.spec.models import OpenLoopSpec
from vlatrack.training.checkpoint.files import load_policy, read_state
from vlatrack.training.ranks import Ranks


@dataclass(frozen=True)
class Evaluation:
    """Means of one checkpoint."""

    checkpoint: Path
    metrics: dict[str, float]  # by schema name with the split's prefix
    file: Path  # where they were written, as JSON


def evaluate_run(
    path: Path, *, checkpoint: str = "best", display: Display | None = None, ranks: Ranks | None = None
) -> Evaluation:
    """Open-loop evaluation of a checkpoint (``best``, ``last`` or a folder's name) of the run at ``path``.

    Several ranks share the samples; the first one writes the file.

    Raises:
        VlatrackError: no such run or checkpoint, it is damaged, or the data has changed since.
    """
    display, ranks = display or SilentDisplay(), ranks or Ranks()
    with ranks.first_before_others():
        directory = RunDirectory.open(path)
        chosen = directory.checkpoint(checkpoint)
        spec = directory.spec()
        accelerator = builders.build_accelerator(spec)
        policy, samples = _load(directory, chosen, accelerator.device, display)
    settings = spec.evaluate.open_loop or OpenLoopSpec()
    metrics: dict[str, float] = {}
    for split, split_samples in samples.items():
        display.stage(f"evaluating {chosen.name} on {split}: {len(split_samples)} samples")
        values = evaluate_split(policy, split_samples, settings, accelerator, ranks)
        metrics |= {f"{split}_{name}": value for name, value in values.items()}
    file = directory.report / f"evaluation-{chosen.name}.json"
    if ranks.is_first:
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"checkpoint": chosen.name, **metrics}, indent=1) + "\n")
    return Evaluation(chosen, metrics, file)


def _load(
    directory: RunDirectory, checkpoint: Path, device: torch.device, display: Display
) -> tuple[VlaPolicy, dict[str, SampleSet]]:
    """The policy on ``device``, and the samples of each validation split."""
    spec = directory.spec()
    _, stored = read_state(checkpoint)
    splits = builders.open_splits(spec)
    ranges = builders.value_ranges(spec, splits[TRAIN])
    stored.check_equal(builders.build_identity(spec, ranges), checkpoint)
    backbone = builders.new_backbone(spec)
    policy = builders.build_policy(spec, backbone)
    encoding = builders.build_encoding(spec, splits, ranges, backbone, policy.layout, directory.tokenizer, device)
    held_out = {name: split for name, split in splits.items() if name != TRAIN}
    samples = builders.build_samples(spec, held_out, encoding, CodeCache(directory.code_cache), display.encoding)
    load_policy(checkpoint, policy)
    policy.to(device)
    return policy, samples
