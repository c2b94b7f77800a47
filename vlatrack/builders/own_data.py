"""The experiment that `vlatrack new --data` writes: a small policy from scratch on a dataset, with what that says."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlatrack.data.checks.ranges import constant_dimensions
from vlatrack.data.checks.scan import DatasetScan
from vlatrack.data.episodes import EpisodeSource
from vlatrack.errors import DataError
from vlatrack.tokens.layout import PIXELS_PER_CODE, TokenLayout
from vlatrack.tokens.prompts import VLA_PROMPT, vla_sequence
from vlatrack.tokens.text import ByteTokenizer

_IMAGE_SIZE = 64
_CODES_A_SIDE = _IMAGE_SIZE // PIXELS_PER_CODE
_HORIZON, _BATCH_SIZE = 5, 32
_STARTS_A_SECOND = 20  # of training samples
_STEPS = 300
"""Training steps that show whether data and settings are right, as many as the quickstart has."""


def experiment_of(path: Path, scan: DatasetScan, *, action: str, state: str) -> tuple[str, str]:
    """The name and the YAML of an experiment on a dataset.

    Args:
        scan: of the dataset at the path.
        action, state: the features that the command was told, for a LeRobot dataset.

    Raises:
        DataError: a dataset that no policy can learn from.
    """
    if not scan.source.cameras:
        raise DataError(f"{path}: no camera; a policy needs images")
    if max((record.length for record in scan.records), default=0) < _HORIZON:
        raise DataError(f"{path}: no episode has {_HORIZON} steps, so there is nothing to learn from")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", path.resolve().stem).strip("-_")[:100] or "my-data"
    return name, _yaml(name, path, scan, _settings(scan.source, path, action, state))


def _settings(source: EpisodeSource, path: Path, action: str, state: str) -> dict[str, Any]:
    """What the experiment says of the dataset, without its selection of episodes."""
    from vlatrack.data.formats.libero import LiberoDataset
    from vlatrack.data.formats.rlds.dataset import RldsDataset
    from vlatrack.data.formats.robomimic import RobomimicDataset
    from vlatrack.data.formats.rynnvla.trajectories import RynnVlaTrajectories

    place = {"path": str(path.resolve())}
    match source:
        case LiberoDataset():
            return {"kind": "libero_hdf5", **place}
        case RobomimicDataset():
            return {"kind": "robomimic_hdf5", **place}
        case RynnVlaTrajectories():
            return {"kind": "rynnvla_conversations", **place}
        case RldsDataset():
            actions, states = (list(names) for names in source.features)
            return {"kind": "rlds", **place, "fps": source.fps, "action": actions, "state": states or None}
    other: dict[str, Any] = {} if action == "action" else {"action": action}
    if not source.state_dim:
        other["state"] = None
    elif state != "observation.state":
        other["state"] = state
    return {"kind": "lerobot", **place, **other}


def _yaml(name: str, path: Path, scan: DatasetScan, settings: dict[str, Any]) -> str:
    source, steps = scan.source, sum(record.length for record in scan.records)
    tasks = [record.task for record in scan.records]
    every = max(1, round(source.fps / _STARTS_A_SECOND))
    tokens = max(_tokens(scan, task) for task in set(tasks))
    epochs = min(50, max(1, round(_STEPS * _BATCH_SIZE * every / steps)))
    holds_out = len(tasks) > len(set(tasks))
    val_ind = (
        f"  val_ind: {_flow({**settings, 'part': 'last_tenth'})}\n"
        if holds_out
        else "  # val_ind: every task has a single episode, so that none can be held out\n"
    )
    part = "all_but_last_tenth" if holds_out else "all"
    cameras = sorted(source.cameras, key=lambda camera: any(word in camera.lower() for word in ("wrist", "hand")))
    dataset = json.dumps(str(path))  # on one line, whatever is in it
    return f"""\
# A small policy from scratch, which shows whether data and settings are right: minutes to hours on a CPU. Written by
# vlatrack new for {dataset}: {len(tasks):,} episodes of {len(set(tasks)):,} tasks, {steps:,} steps.
name: {json.dumps(name)}
seed: 0

backbone:
  kind: chameleon
  init: scratch # for a policy that is good at its tasks: pretrained, with checkpoint
  preset: tiny
  max_seq_len: {-(-tokens // 128) * 128} # the longest sample has {tokens:,} tokens

action_head:
  time_horizon: {_HORIZON} # steps of a chunk; at {source.fps:g} steps a second {_HORIZON / source.fps:.2g} s
  action_dim: {source.action_dim}
  reduced_ratio: 0.5

tokenizer:
  statistics: {_statistics(scan)}
  image: {{image_size: {_IMAGE_SIZE}}} # {_CODES_A_SIDE**2} tokens an image; more pixels show more

data:
  cameras: {_flow(cameras)} # third-person first, then wrist
  use_state: {str(source.state_dim > 0).lower()}
  sample_every: {every} # a training sample begins at every n-th step; at 80 steps a second neighbours are nearly alike
  train: {_flow({**settings, "part": part})}
{val_ind}
optim:
  lr: 1.0e-3

train:
  epochs: {epochs}
  batch_size: {_BATCH_SIZE}
  precision: fp32 # a CPU gains nothing from bf16

evaluate:
  open_loop: {{every_epochs: 1, batch_size: 64, max_samples: 256}}

tracking:
  backends:
    - kind: mlflow # SQLite in runs/, opened with `vlatrack ui --mlflow`; for Weights & Biases add: - kind: wandb
"""


def _tokens(scan: DatasetScan, task: str) -> int:
    """Of a sample with such an instruction."""
    source, layout = scan.source, TokenLayout()
    row = vla_sequence(
        text=ByteTokenizer(layout).encode(VLA_PROMPT.format(instruction=task)),
        state=np.zeros(source.state_dim, np.int64) if source.state_dim else None,
        images=[np.zeros((_CODES_A_SIDE, _CODES_A_SIDE), np.int64)] * len(source.cameras),
        action_ids=np.zeros((_HORIZON, source.action_dim), np.int64),
        actions=None,
        layout=layout,
        max_length=sys.maxsize,
    )
    return len(row.input_ids)


def _statistics(scan: DatasetScan) -> str:
    stay = {f"{ranges.kind}_as_is": constant_dimensions(ranges) for ranges in scan.ranges}
    if not any(stay.values()):
        return "minmax # of the training episodes, for each dimension"
    return f"{_flow({'method': 'minmax', **{key: own for key, own in stay.items() if own}})} # some never change"


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return str(text).strip()
