"""Settings that have another name or meaning than in an earlier version.

In version 0.1.0 `train.batch_size` was the number of samples in one forward pass over all processes, and
`train.accumulate` the number of forward passes in one step. A user's file gets an error that says what to write
instead; the spec.yaml of a run directory is migrated.

`train.gradient_checkpointing` is `train.memory.keep` by now: true was `none`, false `all`. It is read everywhere.

Image codes that are fitted to the data stood for features of random convolutions before there was
`tokenizer.image.encoder`, whose default is another: a run without it has `convolutions`.
"""

from collections.abc import Mapping
from typing import Literal, cast

from vlatrack.spec.identity import Scalar
from vlatrack.spec.yaml_tree import Value


def retired_accumulate(root: Value) -> str:
    """An error message that says what to write instead of `train.accumulate`, with the numbers of the file."""
    batch, accumulate = _old_batch(root)
    remedy = (
        "set train.batch_size to the samples of one optimiser step over all processes, and train.micro_batch to those "
    )
    example = f" (here {batch * accumulate} and {batch})" if batch and accumulate else ""
    return f"this key is gone: {remedy}of one forward pass{example}"


def retired_checkpointing() -> str:
    """An error message for a `train.gradient_checkpointing` that cannot be renamed."""
    return "this key is gone: write train.memory.keep, none for true and all for false"


def renamed(root: Value) -> Value:
    """A spec in which `train.gradient_checkpointing` has its name of today; a file with both names stays as it is."""
    train = root.get("train") if isinstance(root, dict) else None
    if not isinstance(root, dict) or not isinstance(train, dict):
        return root
    old, memory = train.get("gradient_checkpointing"), train.get("memory", {})
    if not isinstance(old, bool) or not isinstance(memory, dict) or "keep" in memory:
        return root
    others = {key: value for key, value in train.items() if key != "gradient_checkpointing"}
    return {**root, "train": {**others, "memory": {**memory, "keep": _keep(old)}}}


def _keep(checkpointing: bool) -> Literal["none", "all"]:
    return "none" if checkpointing else "all"


def migrate(root: Value) -> Value:
    """A run's spec.yaml, written by this or an earlier version, in the form of this version."""
    root = _with_encoder(renamed(root))
    batch, accumulate = _old_batch(root)
    if accumulate == 0:
        return root
    tree = cast(dict[str, Value], root)
    train = {key: value for key, value in cast(dict[str, Value], tree["train"]).items() if key != "accumulate"}
    micro_batch = batch if accumulate > 1 else None
    return {**tree, "train": {**train, "batch_size": batch * accumulate, "micro_batch": micro_batch}}


def _with_encoder(root: Value) -> Value:
    """A run's spec, which has all settings that there were, with the encoder of image codes."""
    tokenizer = root.get("tokenizer") if isinstance(root, dict) else None
    image = tokenizer.get("image") if isinstance(tokenizer, dict) else None
    if not isinstance(root, dict) or not isinstance(tokenizer, dict) or not isinstance(image, dict):
        return root
    return {**root, "tokenizer": {**tokenizer, "image": {"encoder": "convolutions", **image}}}


def migrate_flat(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The same for the flat settings in a journal (see ``vlatrack.spec.identity.flatten``)."""
    old = settings.get("train.gradient_checkpointing")
    if isinstance(old, bool):
        others = {key: value for key, value in settings.items() if key != "train.gradient_checkpointing"}
        settings = others | {"train.memory.keep": _keep(old)}
    if "tokenizer.image.image_size" in settings:
        settings = {"tokenizer.image.encoder": "convolutions", **settings}
    train = {key.removeprefix("train."): value for key, value in settings.items() if key.startswith("train.")}
    migrated = cast(dict[str, dict[str, Scalar]], migrate({"train": cast(Value, train)}))["train"]
    others = {key: value for key, value in settings.items() if not key.startswith("train.")}
    return others | {f"train.{key}": value for key, value in migrated.items()}


def _old_batch(root: Value) -> tuple[int, int]:
    """`train.batch_size` and `train.accumulate`; 0 for one that is missing or not an integer."""
    train = root.get("train") if isinstance(root, dict) else None
    values = [train.get(key) if isinstance(train, dict) else None for key in ("batch_size", "accumulate")]
    batch, accumulate = (value if type(value) is int else 0 for value in values)
    return batch, accumulate
