"""Names that a metric, a param or a tag can have and that no tracker expects."""

import random

ODD_NAMES = (
    "",
    " ",
    ".",
    "..",
    "/",
    "a//b",
    "a/../b",
    "/etc/passwd",
    "train_step",
    "_step",
    "_timestamp",
    "_runtime",
    "_wandb",
    "metric/_step",
    "epoch.",
    "a: b",
    ":x2f:",
    ":x:",
    "line\nbreak",
    "tab\tand quote'\"`",
    "null",
    "*",
    "字" * 40,
    "x" * 300,
    "é" * 500,
    "🤖/🦾",
)
_ALPHABETS = (
    "abcxyzABCXYZ0189_",
    "./-_: \\",
    "!\"#$%&'()*+,;<=>?@[]^`{|}~",
    "\t\n\r\x00\x1b\x7f",
    "äßøæñçİıŁ",
    "字漢한あア",
    "🤖🦾\u200d\ufe0f\u0301\u202e",
)


def random_names(count: int, *, seed: int = 0) -> list[str]:
    """So many different names of up to 60 letters of many scripts, the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311
    names: dict[str, None] = {}
    while len(names) < count:
        letters = "".join(rng.sample(_ALPHABETS, rng.randint(1, len(_ALPHABETS))))
        names["".join(rng.choices(letters, k=rng.randint(1, 60)))] = None
    return list(names)
