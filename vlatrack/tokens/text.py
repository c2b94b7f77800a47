"""Text tokenizers: that of a pretrained model, or plain bytes for a model from scratch."""

import json
from pathlib import Path
from typing import Protocol, Self

from tokenizers import Tokenizer

from vlatrack.errors import CheckpointError
from vlatrack.tokens.layout import TokenLayout

_PRETRAINED, _BYTES = "tokenizer.json", "text_tokenizer.json"
_ORIGINAL = "text_tokenizer.json"  # beside Chameleon's vqgan.ckpt; our byte tokenizers lie in folders of checkpoints


class TextTokenizer(Protocol):
    @property
    def vocabulary_size(self) -> int:
        """Size of the smallest vocabulary with every id."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no beginning- or end-of-sequence token."""
        ...

    def save(self, folder: Path) -> None:
        """Write the tokenizer, for ``load_text_tokenizer``; CheckpointError if it cannot be written."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids from ``layout.byte_base`` on: complete, reversible, and without collisions."""

    def __init__(self, layout: TokenLayout) -> None:
        self._base = layout.byte_base

    @property
    def vocabulary_size(self) -> int:
        return self._base + 256

    def encode(self, text: str) -> list[int]:
        return [self._base + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        """The text of byte ids.

        Raises:
            ValueError: an id is not a byte id, or the bytes are not UTF-8.
        """
        return bytes(i - self._base for i in ids).decode()

    def save(self, folder: Path) -> None:
        _write(folder / _BYTES, json.dumps({"byte_base": self._base}).encode() + b"\n")


class PretrainedTextTokenizer:
    """The tokenizer of a pretrained model: a ``tokenizer.json`` of the tokenizers library."""

    def __init__(self, content: bytes, place: Path) -> None:
        """
        Args:
            content: the ``tokenizer.json``, which ``save`` writes unchanged.
            place: where it was read from, for messages.
        """
        self._content = content
        try:
            self._tokenizer = Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception for a file it cannot parse
            raise CheckpointError(f"{place}: not a tokenizer ({' '.join(str(error).split())})") from error

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The tokenizer in ``folder``.

        Raises:
            CheckpointError: its ``tokenizer.json`` is missing or not a tokenizer; in the folder of Chameleon's original
                tokenizers it is called ``text_tokenizer.json``.
        """
        file = folder / _PRETRAINED
        if not file.exists() and (folder / _ORIGINAL).exists():
            file = folder / _ORIGINAL
        try:
            return cls(file.read_bytes(), file)
        except FileNotFoundError:
            raise CheckpointError(
                f"{file}: no such file; the checkpoint folder needs one (transformers' AutoTokenizer writes it)"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error

    @property
    def vocabulary_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def save(self, folder: Path) -> None:
        _write(folder / _PRETRAINED, self._content)


def load_text_tokenizer(folder: Path) -> TextTokenizer:
    """The text tokenizer that was saved into ``folder``.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if (folder / _PRETRAINED).exists():
        return PretrainedTextTokenizer.read(folder)
    file = folder / _BYTES
    try:
        base = json.loads(file.read_text())["byte_base"]
        return ByteTokenizer(TokenLayout(byte_base=int(base)))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no text tokenizer in it ({_PRETRAINED} or {_BYTES})") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not a saved text tokenizer ({type(error).__name__}: {error})") from error


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise CheckpointError(f"{file}: the text tokenizer cannot be written ({error.strerror})") from error
