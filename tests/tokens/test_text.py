"""Text tokenizers that a checkpoint carries."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from vlatrack.errors import CheckpointError
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.text import ByteTokenizer, PretrainedTextTokenizer, TextTokenizer, load_text_tokenizer


def byte_tokenizer(_: Path) -> ByteTokenizer:
    return ByteTokenizer(TokenLayout.after(300, pad=0, bos=1))


def pretrained_tokenizer(folder: Path) -> PretrainedTextTokenizer:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 3, "push": 8}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    (folder / "model").mkdir()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    return PretrainedTextTokenizer.read(folder / "model")


@pytest.mark.parametrize("make", [byte_tokenizer, pretrained_tokenizer])
def test_a_saved_tokenizer_reads_text_as_before(tmp_path, make) -> None:
    before: TextTokenizer = make(tmp_path)
    before.save(tmp_path / "saved")
    after = load_text_tokenizer(tmp_path / "saved")
    assert type(after) is type(before)
    assert after.encode("push it") == before.encode("push it")
    assert after.vocabulary_size == before.vocabulary_size > max(before.encode("push it"))


def test_a_pretrained_tokenizer_is_saved_as_it_was(tmp_path) -> None:
    pretrained_tokenizer(tmp_path).save(tmp_path / "saved")
    original = (tmp_path / "model" / "tokenizer.json").read_bytes()
    assert (tmp_path / "saved" / "tokenizer.json").read_bytes() == original


@pytest.mark.parametrize(
    ("make", "file"), [(byte_tokenizer, "text_tokenizer.json"), (pretrained_tokenizer, "tokenizer.json")]
)
def test_a_full_disk_is_one_clear_error(tmp_path, make, file) -> None:
    tokenizer = make(tmp_path)
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=rf"{file}: the text tokenizer cannot be written \(No space left"):
        tokenizer.save(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("other.json", "{}", "no text tokenizer in it"),
        ("text_tokenizer.json", "{}", r"text_tokenizer\.json: not a saved text tokenizer \(KeyError"),
        ("text_tokenizer.json", "[", r"text_tokenizer\.json: not a saved text tokenizer"),
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer"),
    ],
)
def test_a_folder_without_a_readable_tokenizer_is_one_clear_error(tmp_path, file, content, message) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_text_tokenizer(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
