"""Finished token rows that do not fit the experiment are found before they are trained on, with their file."""

import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rynnvla_data import write_records

from vlatrack.data.formats.rynnvla.records import Records
from vlatrack.data.row_checks import RowCounts, RowRules, check_rows
from vlatrack.data.row_samples import RowSamples
from vlatrack.errors import DataError
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.layout import TokenLayout
from vlatrack.tokens.prompts import TokenSequence, vla_sequence, world_model_sequence

LAYOUT = TokenLayout()
RULES = RowRules(
    layout=LAYOUT,
    vocabulary=65536,
    max_length=200,
    bins=256,
    action_dim=3,
    horizon=2,
    state_dim=4,
    cameras=2,
    history=2,
    image_size=32,
)
GENERATOR = np.random.default_rng(0)
TEXT = [20_000, 20_001, 20_002]


def _codes(side: int = 2) -> np.ndarray:
    return GENERATOR.integers(4, 8196, (side, side))


def _numbers(count: int, start: int, rows: int = 1) -> np.ndarray:
    return GENERATOR.integers(start + 2, start + 258, (rows, count))


def _vla(*, images: int = 4, state: int | None = 4, dim: int = 3, horizon: int = 2, side: int = 2) -> TokenSequence:
    return vla_sequence(
        text=TEXT,
        state=None if state is None else _numbers(state, LAYOUT.state_start)[0],
        images=[_codes(side) for _ in range(images)],
        action_ids=_numbers(dim, LAYOUT.action_start, horizon),
        actions=None,
        layout=LAYOUT,
        max_length=4096,
    )


def _world(answers: int = 2) -> TokenSequence:
    return world_model_sequence(
        text=TEXT,
        history=[([_codes(), _codes()], _numbers(3, LAYOUT.action_start)[0])],
        next_images=[_codes() for _ in range(answers)],
        layout=LAYOUT,
        max_length=4096,
    )


def _check(tmp_path: Path, *rows: TokenSequence, rules: RowRules = RULES) -> RowCounts:
    records = Records(write_records(tmp_path, [(row.input_ids.tolist(), row.labels.tolist()) for row in rows]))
    return check_rows(records.rows(tmp_path / "rows"), rules, records.place)


def test_rows_that_fit_are_counted_by_kind_and_make_batches(tmp_path: Path) -> None:
    rows = [_vla(), _world(), _vla(images=2), _world(answers=1), _vla()]
    assert _check(tmp_path, *rows) == RowCounts(vla=3, world_model=2)
    stored = Records(tmp_path / "configs/libero_goal/rows.yaml").rows(tmp_path / "rows")
    batch = collate(stored.batch(range(5)), LAYOUT)
    expected = collate(rows, LAYOUT)
    assert batch.action_rows.tolist() == expected.action_rows.tolist() == [0, 2, 4]
    assert (batch.input_ids == expected.input_ids).all()
    assert (batch.targets == expected.targets).all()


def _changed(row: TokenSequence, place: int, value: int) -> TokenSequence:
    """The row with another id at a place, in its labels too if it is in the answer."""
    ids, labels = row.input_ids.copy(), row.labels.copy()
    ids[place] = value
    if labels[place] >= 0:
        labels[place] = value
    return TokenSequence(ids, labels)


def _place(row: TokenSequence, token: int, occurrence: int = 0) -> int:
    return int(np.flatnonzero(row.input_ids == token)[occurrence])


ROW, WORLD = _vla(), _world()
STATE, IMAGE = _place(ROW, LAYOUT.state_start), _place(ROW, LAYOUT.image_start)
ANSWER = _place(ROW, LAYOUT.action_start)


@pytest.mark.parametrize(
    ("row", "changes", "reason"),
    [
        (_changed(ROW, 2, 70_000), {}, "its id 70000 is not in the backbone's vocabulary of 65536"),
        (ROW, {"vocabulary": 15_000}, r"its id \d+ is not in the backbone's vocabulary of 15000"),
        (ROW, {"max_length": 60}, r"\d+ tokens, but backbone.max_seq_len is 60"),
        (replace(ROW, labels=np.roll(ROW.labels, 1)), {}, "its labels are not those of one answer"),
        (replace(ROW, labels=np.full_like(ROW.labels, -100)), {}, "its labels are not those of one answer"),
        (replace(ROW, labels=ROW.input_ids), {}, "its labels are not those of one answer"),
        (_changed(ROW, ANSWER, 17_000), {}, "its answer begins with id 17000"),
        (_vla(side=4), {}, "it has an image that is not 32 x 32 pixels; set tokenizer.image.image_size"),
        (ROW, {"image_size": 64}, "it has an image that is not 64 x 64 pixels"),
        (_changed(ROW, IMAGE + 1, 8806), {}, "it has an image that is not 32 x 32 pixels"),
        (_changed(ROW, IMAGE + 3, 8198), {}, "an image in it has ids that are no image codes"),
        (_changed(ROW, IMAGE + 4, 3), {}, "an image in it has ids that are no image codes"),
        (_changed(ROW, IMAGE + 5, 5), {}, "an image in it has ids that are no image codes"),
        (_changed(ROW, IMAGE + 9, 5), {}, "an image in it has ids that are no image codes"),
        (_changed(ROW, len(ROW.input_ids) - 5, LAYOUT.image_start), {}, "it has an image that is not 32 x 32"),
        (_vla(images=3), {}, "its prompt has 3 images, which are not those of 2 cameras"),
        (_vla(images=6), {}, r"its prompt has 6 images, .* at 1 to 2 steps \(data.history\)"),
        (_vla(images=0), {}, "its prompt has 0 images"),
        (_vla(state=None), {}, "its prompt has no state, but data.use_state is true"),
        (ROW, {"state_dim": None}, "its prompt has a state, but data.use_state is false"),
        (ROW, {"state_dim": 5}, "its state is not 5 numbers"),
        (_vla(state=3), {}, "its state is not 4 numbers"),
        (_changed(ROW, STATE + 2, LAYOUT.state_start + 1), {}, "its state is not 4 numbers"),
        (ROW, {"horizon": 3}, "its answer has 2 actions, the first of 3 numbers, not 3 "),
        (ROW, {"action_dim": 7}, r"the first of 3 numbers, not 2 \(action_head.time_horizon\) of 7"),
        (_vla(dim=2, horizon=2), {}, "its answer has 2 actions, the first of 2 numbers"),
        (_changed(ROW, ANSWER + 1, LAYOUT.action_start + 258), {}, "its answer has 2 actions, .* in 256 bins"),
        (_changed(ROW, ANSWER + 1, LAYOUT.action_start + 257), {"bins": 255}, "in 255 bins"),
        (_changed(ROW, ANSWER + 4, 8710), {}, "its answer has 2 actions"),
        (_changed(ROW, len(ROW.input_ids) - 1, 5), {}, "and an end of turn"),
        (_world(answers=11), {"max_length": 400}, "its answer is not 1 to 10 images"),
        (_changed(WORLD, len(WORLD.input_ids) - 1, 20_000), {}, "its answer is not 1 to 10 images"),
    ],
)
def test_a_row_that_does_not_fit_is_named_with_its_file(
    row: TokenSequence, changes: dict[str, int], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"/tokens/rows/files/[01]\.pkl: .*{reason}") as error:
        _check(tmp_path, _changed(ROW, ANSWER + 1, LAYOUT.action_start + 2), row, rules=replace(RULES, **changes))
    assert "\n" not in str(error.value)


def test_every_row_is_looked_at(tmp_path: Path) -> None:
    wrong = _changed(ROW, IMAGE + 3, 8198)
    with pytest.raises(DataError, match=r"/1100\.pkl: an image in it"):
        _check(tmp_path, *[ROW] * 1100, wrong)


@pytest.mark.parametrize("chosen", [[0], [1], [4, 3, 2, 1, 0], [1, 3], [5], [0, 5, 1], []])
@pytest.mark.parametrize("length_multiple", [1, 64])
def test_a_batch_of_stored_rows_is_the_one_that_the_rows_make(
    chosen: list[int], length_multiple: int, tmp_path: Path
) -> None:
    rows = [_vla(), _world(), _vla(images=2), _world(answers=1), _vla(images=1)]
    rows.append(replace(ROW, labels=np.where(np.arange(len(ROW.labels)) == 5, 7, ROW.labels)))  # not one span
    records = Records(write_records(tmp_path, [(row.input_ids.tolist(), row.labels.tolist()) for row in rows]))
    samples = pickle.loads(pickle.dumps(RowSamples(records.rows(tmp_path / "rows"), LAYOUT)))
    found = samples.batch(iter(chosen), length_multiple=length_multiple)
    expected = collate([rows[number] for number in chosen], LAYOUT, length_multiple=length_multiple)
    for field in fields(Batch):
        value, wanted = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(wanted, torch.Tensor):
            assert value.dtype == wanted.dtype, field.name
            assert torch.equal(value, wanted), field.name
        else:
            assert value == wanted, field.name


def test_another_process_maps_the_rows_and_gets_no_copy(tmp_path: Path) -> None:
    stored = Records(write_records(tmp_path, [(ROW.input_ids.tolist(), ROW.labels.tolist())] * 500))
    assert len(pickle.dumps(stored.rows(tmp_path / "rows"))) < 500
