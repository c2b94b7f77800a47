"""Finished token rows as what a training learns from."""

from collections.abc import Iterable

from vlatrack.data.rows import TokenRows
from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.layout import TokenLayout


class RowSamples:
    """All rows of a file, by their numbers, in batches. Several processes share the pages of the file.

    Args:
        layout: the token ids of the backbone, which the rows have been checked against.
    """

    def __init__(self, rows: TokenRows, layout: TokenLayout) -> None:
        self._rows, self._layout = rows, layout
        self._first_answer_ids = rows.first_answer_ids

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, numbers: Iterable[int], *, length_multiple: int = 1) -> Batch:
        """The rows of these numbers as a batch; none make an idle batch (see `collate`)."""
        return collate(self._rows.batch(numbers), self._layout, length_multiple=length_multiple)

    def length_of(self, number: int) -> int:
        """The number of tokens of a row."""
        return int(self._rows.lengths[number])

    def describe(self, number: int) -> dict[str, str | int]:
        """A row as people find it: its number and kind."""
        is_vla = self._first_answer_ids[number] == self._layout.action_start
        return {"number": number, "kind": "vla" if is_vla else "world_model"}
