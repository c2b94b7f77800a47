"""Text tokenizers: the checkpoint's own, or plain bytes where a model starts from scratch."""

from pathlib import Path
from typing import Protocol

from vlatrack.errors import CheckpointError
from vlatrack.tokens.layout import TokenLayout


class TextTokenizer(Protocol):
    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no beginning- or end-of-sequence token."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids from ``layout.byte_base`` on: complete, reversible, collides with nothing."""

    def __init__(self, layout: TokenLayout) -> None:
        self._base = layout.byte_base

    def encode(self, text: str) -> list[int]:
        return [self._base + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        """The text of byte ids.

        Raises:
            ValueError: an id is no byte id, or the bytes are not UTF-8.
        """
        return bytes(i - self._base for i in ids).decode()


class CheckpointTextTokenizer:
    """The byte-pair tokenizer that a Chameleon checkpoint carries (``tokenizer.json``)."""

    def __init__(self, file: Path) -> None:
        """Raises CheckpointError if ``file`` is missing or no tokenizer."""
        from tokenizers import Tokenizer

        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; the checkpoint folder needs its tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise CheckpointError(f"{file}: not a tokenizer ({error})") from error

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
