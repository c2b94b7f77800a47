"""Whether finished token rows are those of an experiment, before anything is trained on them.

Legend: R = rows of a piece, I = ids of all of them, n = places in it, H = steps of a chunk, A = numbers of an action.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlatrack.data.rows import RowPiece, TokenRows
from vlatrack.errors import DataError
from vlatrack.tokens.batch import IMAGE_SLOTS
from vlatrack.tokens.layout import TokenLayout

Mask = NDArray[np.bool_]
Fault = tuple[Mask, Callable[[int], str]]  # [R] the rows with a fault, and what is wrong with one of them


@dataclass(frozen=True)
class RowRules:
    """What an experiment expects of its rows."""

    layout: TokenLayout
    vocabulary: int  # ids of the backbone
    max_length: int
    bins: int
    action_dim: int
    horizon: int
    state_dim: int | None  # None: the prompt has no state
    cameras: int
    history: int  # steps of images in a prompt, at most
    image_size: int  # pixels of each side


@dataclass(frozen=True)
class RowCounts:
    """The rows of each kind."""

    vla: int
    world_model: int


def check_rows(rows: TokenRows, rules: RowRules, place: Callable[[int], str]) -> RowCounts:
    """Count the rows; all of them are read.

    Args:
        place: where the row of a number comes from, for messages.

    Raises:
        DataError: a row does not fit the experiment.
    """
    vla = 0
    for piece in rows.pieces():
        for bad, describe in _faults(piece, rules):
            if bad.any():
                row = int(bad.argmax())
                raise DataError(f"{place(piece.first + row)}: {describe(row)}")
        vla += int((_first_answers(piece) == rules.layout.action_start).sum())
    return RowCounts(vla, len(rows) - vla)


def _faults(piece: RowPiece, rules: RowRules) -> Iterator[Fault]:
    """Each check relies on those before it."""
    lengths = np.diff(piece.offsets)
    outside = (piece.ids < 0) | (piece.ids >= rules.vocabulary)
    yield (
        _in_rows(piece, outside) > 0,
        lambda row: (
            f"its id {_ids_of(piece, row).max()} is not in the backbone's vocabulary of {rules.vocabulary}; "
            "tokenise it for this backbone"
        ),
    )
    yield (
        lengths > rules.max_length,
        lambda row: f"{lengths[row]} tokens, but backbone.max_seq_len is {rules.max_length}; raise it",
    )
    yield (
        piece.has_labels | (piece.answer_stops != lengths) | (piece.answer_starts == 0),
        lambda row: "its labels are not those of one answer at its end; tokenise it again",
    )
    is_vla = _first_answers(piece) == rules.layout.action_start
    yield (
        ~(is_vla | (_first_answers(piece) == rules.layout.image_start)),
        lambda row: (
            f"its answer begins with id {_first_answers(piece)[row]}, which neither an action nor an image does"
        ),
    )
    yield from _image_faults(piece, rules)
    yield from _image_number_faults(piece, rules, is_vla)
    yield from _state_faults(piece, rules, is_vla)
    yield _action_fault(piece, rules, is_vla)


def _image_faults(piece: RowPiece, rules: RowRules) -> Iterator[Fault]:
    layout, side = rules.layout, rules.image_size // 16
    block = _block(side)
    starts = np.flatnonzero(piece.ids == layout.image_start)
    rows = np.searchsorted(piece.offsets, starts, side="right") - 1
    whole = starts + block <= piece.offsets[rows + 1]
    sized = whole.copy()
    for place in (1, 2):
        sized[whole] &= piece.ids[starts[whole] + place] == layout.grid_base + side // 2
    yield (
        _rows_with(piece, starts[~sized]),
        lambda row: (
            f"it has an image that is not {rules.image_size} x {rules.image_size} pixels; set "
            "tokenizer.image.image_size to its size, or tokenise it again"
        ),
    )
    body = piece.ids[starts[:, None] + np.arange(3, block - 1)].reshape(-1, side, side + 1)
    first, codes = layout.first_image_code, body[:, :, :-1]
    right = ((codes >= first) & (codes < first + layout.image_codes)).all(axis=(1, 2))
    right &= (body[:, :, -1] == layout.end_of_image_row).all(axis=1)
    right &= piece.ids[starts + block - 1] == layout.image_end
    yield (
        _rows_with(piece, starts[~right]),
        lambda row: "an image in it has ids that are no image codes of this backbone; tokenise it for this backbone",
    )


def _image_number_faults(piece: RowPiece, rules: RowRules, is_vla: Mask) -> Iterator[Fault]:
    """Of images that are whole and of the right size."""
    layout, side = rules.layout, rules.image_size // 16
    images = _in_rows(piece, piece.ids == layout.image_start)
    uneven = (images % rules.cameras != 0) | (images < rules.cameras) | (images > rules.cameras * rules.history)
    yield (
        is_vla & uneven,
        lambda row: (
            f"its prompt has {images[row]} images, which are not those of {rules.cameras} cameras "
            f"(data.cameras) at 1 to {rules.history} steps (data.history)"
        ),
    )
    answers, rest = np.divmod(piece.answer_stops - piece.answer_starts - 1, _block(side))
    ends = piece.ids[piece.offsets[1:] - 1] == layout.end_of_turn
    yield (
        ~is_vla & ((rest != 0) | (answers > IMAGE_SLOTS) | ~ends),
        lambda row: f"its answer is not 1 to {IMAGE_SLOTS} images and an end of turn; tokenise it again",
    )


def _state_faults(piece: RowPiece, rules: RowRules, is_vla: Mask) -> Iterator[Fault]:
    layout, size = rules.layout, rules.state_dim
    starts = np.flatnonzero(piece.ids == layout.state_start)
    states = np.bincount(np.searchsorted(piece.offsets, starts, side="right") - 1, minlength=len(is_vla))
    wanted = "no state, but data.use_state is true" if size else "a state, but data.use_state is false"
    yield is_vla & (states != (1 if size else 0)), lambda row: f"its prompt has {wanted}; correct that"
    if size:
        blocks = piece.ids[np.minimum(starts[:, None] + np.arange(1, size + 2), len(piece.ids) - 1)]
        right = _are_bins(blocks[:, :-1], layout.state_start, rules.bins).all(axis=1)
        right &= blocks[:, -1] == layout.state_end
        yield (
            _rows_with(piece, starts[~right]),
            lambda row: (
                f"its state is not {size} numbers (tokenizer.statistics.state_low) in {rules.bins} bins "
                "(tokenizer.bins)"
            ),
        )


def _action_fault(piece: RowPiece, rules: RowRules, is_vla: Mask) -> Fault:
    layout, block = rules.layout, rules.action_dim + 2
    expected = rules.horizon * block + 1
    bad = is_vla & (piece.answer_stops - piece.answer_starts != expected)
    rows = np.flatnonzero(is_vla & ~bad)
    answers = piece.ids[(piece.offsets[rows] + piece.answer_starts[rows])[:, None] + np.arange(expected)]
    blocks = answers[:, :-1].reshape(len(rows), rules.horizon, block)
    right = (blocks[:, :, 0] == layout.action_start) & (blocks[:, :, -1] == layout.action_end)
    right &= _are_bins(blocks[:, :, 1:-1], layout.action_start, rules.bins).all(axis=2)
    bad[rows] = ~(right.all(axis=1) & (answers[:, -1] == layout.end_of_turn))

    def describe(row: int) -> str:
        answer = _ids_of(piece, row)[piece.answer_starts[row] :]
        steps = int((answer == layout.action_start).sum())
        ends = np.flatnonzero(answer == layout.action_end)
        numbers = int(ends[0]) - 1 if len(ends) else 0
        return (
            f"its answer has {steps} actions, the first of {numbers} numbers, not {rules.horizon} "
            f"(action_head.time_horizon) of {rules.action_dim} (action_head.action_dim) in {rules.bins} bins "
            "(tokenizer.bins) and an end of turn"
        )

    return bad, describe


def _block(side: int) -> int:
    """The tokens of an image of side x side codes: start, two sizes, rows that each have an end, and the end."""
    return 3 + side * (side + 1) + 1


def _are_bins(ids: NDArray[np.integer], start: int, bins: int) -> Mask:
    """Whether ids stand for a value, as `Bins.encode` gives them."""
    return (ids >= start + 2) & (ids <= start + 1 + bins)


def _first_answers(piece: RowPiece) -> NDArray[np.integer]:
    """The first id of each row's answer, [R]; of a row without an answer, its last id."""
    return piece.ids[np.minimum(piece.offsets[:-1] + piece.answer_starts, piece.offsets[1:] - 1)]


def _ids_of(piece: RowPiece, row: int) -> NDArray[np.integer]:
    return piece.ids[piece.offsets[row] : piece.offsets[row + 1]]


def _in_rows(piece: RowPiece, mask: Mask) -> NDArray[np.int64]:
    """How many ids of a mask [I] each row has, [R]."""
    return np.add.reduceat(mask, piece.offsets[:-1], dtype=np.int64)


def _rows_with(piece: RowPiece, places: NDArray[np.int64]) -> Mask:
    """The rows [R] with one of the places [n] in `piece.ids`."""
    found = np.zeros(len(piece.offsets) - 1, bool)
    found[np.searchsorted(piece.offsets, places, side="right") - 1] = True
    return found
