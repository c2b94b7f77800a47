"""The documented log files: what is appended is read, and what a resumed run repeats is cut off."""

import json
import math
from pathlib import Path

import pytest

from vlatrack.errors import DataError
from vlatrack.reports.epoch_log import append_epoch, drop_epochs_from, read_epoch_log


def written(file: Path, epochs: int) -> list[str]:
    for epoch in range(epochs):
        append_epoch(file, {"train_closs": 1.5, "epoch": epoch})
    return file.read_text().splitlines(keepends=True)


def test_a_resumed_run_drops_the_epochs_it_repeats_and_a_torn_line(tmp_path: Path) -> None:
    file = tmp_path / "log_train.txt"
    whole = written(file, 4)
    with file.open("a") as stream:
        stream.write('{"train_closs": 1.')
    drop_epochs_from(file, 2)
    assert file.read_text() == "".join(whole[:2])
    drop_epochs_from(tmp_path / "log_eval_ood.txt", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["log_train.txt"]


def test_values_that_are_not_finite_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Bare NaN and Infinity, as the reference's `json.dumps` writes them."""
    file = tmp_path / "log_eval_ood.txt"
    record = {"val_closs": math.nan, "val_loss_ct": math.inf, "val_z_loss": -math.inf, "val_loss": 1.0, "epoch": 0}
    append_epoch(file, record)
    assert file.read_text() == json.dumps(record) + "\n"
    assert '"val_closs": NaN, "val_loss_ct": Infinity, "val_z_loss": -Infinity' in file.read_text()
    (values,) = read_epoch_log("val_ood", file).values
    assert math.isnan(values.pop("closs"))
    assert values == {"loss_ct": math.inf, "z_loss": -math.inf, "loss": 1.0}
    append_epoch(file, {"val_closs": 2.0, "epoch": 1})
    drop_epochs_from(file, 1)
    assert len(read_epoch_log("val_ood", file).epochs) == 1


def test_lines_without_an_epoch_are_cut_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "log_train.txt"
    file.write_text('{"train_closs": 3.0}\n{"train_closs": 2.0}\n{"train_closs": 1.0}\n')
    drop_epochs_from(file, 1)
    assert file.read_text() == '{"train_closs": 3.0}\n'


def test_a_damaged_line_before_the_last_is_named_and_nothing_is_cut(tmp_path: Path) -> None:
    file = tmp_path / "log_train.txt"
    whole = written(file, 2)
    file.write_text(whole[0] + "half a li\n" + whole[1])
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"log_train\.txt:2: not a JSON object of numbers; remove the line"):
        drop_epochs_from(file, 1)
    assert file.read_bytes() == before


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log_train\.txt: cannot be written \(No such file or directory\)"):
        append_epoch(tmp_path / "gone" / "log_train.txt", {"train_closs": 1.5, "epoch": 0})
    full = tmp_path / "log_train.txt"
    full.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"log_train\.txt: cannot be written \(No space left on device\); free space"):
        append_epoch(full, {"train_closs": 1.5, "epoch": 0})
