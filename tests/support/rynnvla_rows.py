"""The rows that RynnVLA-002's tokenisation makes of its conversations, written from what its scripts do.

It tokenises question and answer, each ended by <reserved08706>, as one text in which placeholders are added tokens,
puts the ids of images, actions and states in their places, and gives labels to the answer alone. This stands apart from
vlatrack's own way: prompts as blocks of ids, built from episodes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PLACEHOLDERS = ("<|image|>", "<|action|>", "<|state|>")
Row = tuple[list[int], list[int]]


def chameleon_like_tokenizer() -> Tokenizer:
    """Byte-level BPE with the special ids of Chameleon, and merges that would reach into a placeholder."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["th", "the", "Ġt", "Ġthe", "ac", "ti", "on", "acti", "action", "?<", ".<", "|>", "re", "Ġre"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("Ġt", "h"), ("a", "c"), ("t", "i"), ("o", "n"), ("ac", "ti")]
    merges += [("acti", "on"), ("?", "<"), (".", "<"), ("|", ">"), ("r", "e"), ("Ġ", "re")]
    vocabulary = {"<s>": 1, "<reserved08706>": 8710, "Ġth": 16383}
    vocabulary |= {token: 16384 + number for number, token in enumerate([*letters, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [*merges, ("Ġth", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("<reserved08706>")])
    return tokenizer


class ExpectedRows:
    """The rows of conversations.

    Args:
        folder: from which the paths of a conversation start.
        codes: the token ids [rows, columns] of an image's pixels, which another part tokenises.
        ranges: low and high of actions and states.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: Tokenizer,
        codes: Callable[[np.ndarray], np.ndarray],
        ranges: Mapping[str, tuple[Any, Any]],
    ) -> None:
        self._folder, self._codes, self._ranges = folder, codes, ranges
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.add_special_tokens([AddedToken(name) for name in PLACEHOLDERS])
        self._media = {self._tokenizer.token_to_id(name): name for name in PLACEHOLDERS}

    def row(self, item: Mapping[str, Any]) -> Row:
        question, answer = (f"{turn['value']}<reserved08706>" for turn in item["conversations"])
        tokens = [1, *self._tokenizer.encode(question + answer, add_special_tokens=False).ids]
        of_question = 1 + len(self._tokenizer.encode(question, add_special_tokens=False).ids)
        labels = [-100] * of_question + tokens[of_question:]
        media = {
            "<|image|>": [self._image(path) for path in item["image"]],
            "<|action|>": [self._numbers(path, "action", 10004, 15004) for path in item["action"]],
            "<|state|>": [self._numbers(path, "state", 15504, 16004) for path in item.get("state", ())],
        }
        ids: list[int] = []
        of_ids: list[int] = []
        for token, label in zip(tokens, labels, strict=True):
            block = media[self._media[token]].pop(0) if token in self._media else [token]
            ids += block
            of_ids += [-100] * len(block) if label <= 0 else block
        assert not any(media.values()), "every file has a placeholder"
        return ids, of_ids

    def _image(self, path: str) -> list[int]:
        with Image.open(self._folder / path) as image:
            codes = self._codes(np.asarray(image))
        rows, columns = codes.shape
        body = [token for row in codes.tolist() for token in (*row, 8803)]
        return [8197, 8804 + rows // 2, 8804 + columns // 2, *body, 8196]

    def _numbers(self, path: str, kind: str, start: int, end: int) -> list[int]:
        low, high = (np.asarray(limit) for limit in self._ranges[kind])
        normalised = np.clip(2 * (np.load(self._folder / path) - low) / (high - low + 1e-8) - 1, -1, 1)
        return [start, *(np.digitize(normalised, np.linspace(-1, 1, 256)) + start + 1).tolist(), end]
