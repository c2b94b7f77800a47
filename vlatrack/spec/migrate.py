"""Experiments that an earlier vlatrack wrote: what their keys mean now.

In version 0.1.0 `train.batch_size` was the samples of one forward pass over all processes, and `train.accumulate` the
forward passes of one step. An experiment's file gets an error that says what to write; the spec.yaml of a run
directory, which nobody should have to edit, is translated.
"""

from collections.abc import Mapping
from typing import cast

from vlatrack.spec.identity import Scalar
from vlatrack.spec.yaml_tree import Value


def retired_accumulate(root: Value) -> str:
    """What to write instead of `train.accumulate`, in one line, with the numbers of the file."""
    batch, accumulate = _old_batch(root)
    remedy = (
        "set train.batch_size to the samples of one optimiser step over all processes, and train.micro_batch to those "
    )
    example = f" (here {batch * accumulate} and {batch})" if batch and accumulate else ""
    return f"this key is gone: {remedy}of one forward pass{example}"


def migrate(root: Value) -> Value:
    """The tree of a run's spec.yaml, of this or an earlier version, as this version writes it."""
    batch, accumulate = _old_batch(root)
    if accumulate == 0:
        return root
    tree = cast(dict[str, Value], root)
    train = {key: value for key, value in cast(dict[str, Value], tree["train"]).items() if key != "accumulate"}
    micro_batch = batch if accumulate > 1 else None
    return {**tree, "train": {**train, "batch_size": batch * accumulate, "micro_batch": micro_batch}}


def migrate_flat(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The same for the flat settings in a journal (see ``vlatrack.spec.identity.flatten``)."""
    train = {key.removeprefix("train."): value for key, value in settings.items() if key.startswith("train.")}
    migrated = cast(dict[str, dict[str, Scalar]], migrate({"train": cast(Value, train)}))["train"]
    others = {key: value for key, value in settings.items() if not key.startswith("train.")}
    return others | {f"train.{key}": value for key, value in migrated.items()}


def _old_batch(root: Value) -> tuple[int, int]:
    """`train.batch_size` and `train.accumulate`; 0 for what is not there or no whole number."""
    train = root.get("train") if isinstance(root, dict) else None
    values = [train.get(key) if isinstance(train, dict) else None for key in ("batch_size", "accumulate")]
    batch, accumulate = (value if type(value) is int else 0 for value in values)
    return batch, accumulate
