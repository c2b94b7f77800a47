"""Finished token rows as what a training learns from.

Legend: B rows of a batch, S positions, M of the longest answer, V supervised positions.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from vlatrack.data.rows import DEFAULT_TYPE, PaddedRows, TokenRows
from vlatrack.tokens.batch import Batch, collate, index_rows
from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout


class RowSamples:
    """All rows of a file, by their numbers, in batches. Several processes share the pages of the file.

    Args:
        layout: the token ids of the backbone, which the rows have been checked against.
    """

    def __init__(self, rows: TokenRows, layout: TokenLayout) -> None:
        self._rows, self._layout = rows, layout
        self._first_answer_ids = rows.first_answer_ids
        self.lists = rows.lists
        """Where the rows come from, and what share of them an epoch shows."""

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, numbers: Iterable[int], *, length_multiple: int = 1) -> Batch:
        """The rows of these numbers as a batch, as `collate` makes it; none make an idle one."""
        chosen = [int(number) for number in numbers]
        if chosen:
            longest = int(self._rows.lengths[chosen].max())
            length = -(-longest // length_multiple) * length_multiple
            padded = self._rows.padded(chosen, length=length, pad=self._layout.pad)
            if padded.are_spans:
                return _indexed(padded, self._layout, tokens=int(self._rows.lengths[chosen].sum()))
        return collate(self._rows.batch(chosen), self._layout, length_multiple=length_multiple)

    def lengths_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """[n] the number of tokens of each of these rows."""
        return self._rows.lengths[numbers].astype(np.int64)

    def describe(self, number: int) -> dict[str, str | int]:
        """A row as people find it: its number and kind, and the type of its list if that has one."""
        is_vla = self._first_answer_ids[number] == self._layout.action_start
        listed = next(each for each in self.lists if number < each.stop)
        of_type: dict[str, str | int] = {} if listed.type == DEFAULT_TYPE else {"type": listed.type}
        return {"number": number, "kind": "vla" if is_vla else "world_model", **of_type}


def _indexed(padded: PaddedRows, layout: TokenLayout, *, tokens: int) -> Batch:
    """The batch of rows of which the answers are spans.

    Nearly all positions are prompt, so the answers alone are indexed, [B, 1 + M], each behind one position of its
    prompt. What the index says of V holds as it is; positions in a row have to be moved to where its answer begins.
    """
    length = padded.ids.shape[1]
    sizes = padded.answer_stops - padded.answer_starts
    places = np.arange(1 + int(sizes.max()))
    answers = np.take_along_axis(padded.ids, np.minimum(padded.answer_starts[:, None] - 1 + places, length - 1), axis=1)
    labels = np.where((places >= 1) & (places <= sizes[:, None]), answers, IGNORED_LABEL)
    indexed = index_rows(answers, labels, layout)
    row_of, place = np.divmod(indexed.supervised.numpy(), len(places))
    before = padded.answer_starts - 1
    prompt_lengths = indexed.prompt_lengths + torch.from_numpy(before)[indexed.action_rows]
    return replace(
        indexed,
        input_ids=torch.from_numpy(padded.ids),
        supervised=torch.from_numpy(row_of * length + place + before[row_of]),
        prompt_lengths=prompt_lengths,
        longest_prompt=int(prompt_lengths.max()) if len(prompt_lengths) else 0,
        tokens=tokens,
    )
