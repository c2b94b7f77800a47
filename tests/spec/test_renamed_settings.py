"""A setting that has another name by now is read under its old one, too."""

from pathlib import Path

import pytest
from program import TOY

from vlatrack.errors import SpecError
from vlatrack.spec.load import load_spec
from vlatrack.spec.migrate import migrate_flat


def keep_of(text: str, folder: Path, *overrides: str, stored: bool = False) -> str:
    file = folder / "spec.yaml"
    file.write_text(TOY.read_text().replace("\ntrain: {", f"\ntrain: {{{text}, "))
    return load_spec(file, overrides, stored=stored).train.memory.keep


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("old", "keep"), [("true", "none"), ("false", "all")])
def test_gradient_checkpointing_is_read_as_what_is_kept(tmp_path: Path, old: str, keep: str, stored: bool) -> None:
    assert keep_of(f"gradient_checkpointing: {old}", tmp_path, stored=stored) == keep
    assert load_spec(TOY, [f"train.gradient_checkpointing={old}"]).train.memory.keep == keep
    settings = {"train.gradient_checkpointing": old == "true", "train.epochs": 2}
    assert migrate_flat(settings) == {"train.memory.keep": keep, "train.epochs": 2}


def test_an_override_of_the_new_name_wins_over_a_file_with_the_old_one(tmp_path: Path) -> None:
    assert keep_of("gradient_checkpointing: true", tmp_path, "train.memory.keep=every_second") == "every_second"


@pytest.mark.parametrize("text", ["gradient_checkpointing: true, memory: {keep: all}", "gradient_checkpointing: 1"])
def test_an_old_name_that_cannot_be_read_is_one_line_with_the_new_one(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"^\S+:13  train\.gradient_checkpointing: this key is gone: write "):
        keep_of(text, tmp_path)


def test_a_stored_run_without_an_encoder_of_image_codes_has_convolutions(tmp_path: Path) -> None:
    stored = tmp_path / "spec.yaml"
    stored.write_text(TOY.read_text())
    assert load_spec(stored, stored=True).tokenizer.image.encoder == "convolutions"
    assert load_spec(stored).tokenizer.image.encoder == "squares"
    flat = {"tokenizer.image.image_size": 64, "tokenizer.image.codebook_size": 8}
    assert migrate_flat(flat) == {"tokenizer.image.encoder": "convolutions", **flat}
