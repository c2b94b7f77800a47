"""Rows of the same kind differ in a few places: a template is a row with blanks, and a batch is many of them filled in.

What a template looks like is decided by `vlatrack.tokens.prompts` alone, and how its supervision is indexed by
`vlatrack.tokens.batch`: both are asked once, with marks in the blanks.

Legend: S positions of a row, H steps of a chunk, A / N numbers of an action / a state, M images of a row, K codes of an
image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vlatrack.tokens.batch import Batch, collate
from vlatrack.tokens.layout import IGNORED_LABEL, TokenLayout
from vlatrack.tokens.prompts import Ids, TokenSequence


@dataclass(frozen=True)
class Contents:
    """What stands in the blanks of a row, in the order in which the row has it."""

    state: Ids  # [N], N = 0 without a state
    images: Ids  # [M, K]
    actions: Ids  # [number of actions, A]


@dataclass(frozen=True)
class RowTemplate:
    """A row without its text, which stands behind its first id."""

    ids: Ids  # [S] with anything in the blanks
    blanks: Contents  # the position of each
    index: Batch  # of this row, as `vlatrack.tokens.batch` has it
    prompt_length: int

    @classmethod
    def of(
        cls,
        build: Callable[[Contents], TokenSequence],
        *,
        layout: TokenLayout,
        state: int,
        images: tuple[int, int],
        actions: tuple[int, int],
    ) -> "RowTemplate":
        """The template of a kind of row.

        Args:
            build: makes such a row, without text.
            state, images, actions: the shapes of its contents.
        """
        marks = -1000 - np.arange(state + images[0] * images[1] + actions[0] * actions[1])
        parts = np.split(marks, [state, state + images[0] * images[1]])
        marked = build(Contents(parts[0], parts[1].reshape(images), parts[2].reshape(actions)))
        order = np.argsort(marked.input_ids, kind="stable")[: len(marks)][::-1]  # the place of each mark
        places = np.split(order, [state, state + images[0] * images[1]])
        blanks = Contents(places[0], places[1].reshape(images), places[2].reshape(actions))
        ids = marked.input_ids.copy()
        # The index depends on where things are; the ids have to be such as may stand there.
        ids[blanks.state], ids[blanks.images] = layout.state_start + 2, layout.first_image_code
        ids[blanks.actions] = layout.action_start + 2
        labels = np.where(marked.labels == IGNORED_LABEL, IGNORED_LABEL, ids)
        prompt_length = int((labels == IGNORED_LABEL).sum())
        return cls(ids, blanks, collate([TokenSequence(ids, labels)], layout), prompt_length)


@dataclass(frozen=True)
class Row:
    """One row: a template, and what to fill in."""

    template: RowTemplate
    text: Ids  # ids of the text
    contents: Contents
    chunk: NDArray[np.float32] | None = None  # [H, A] the answer's actions in [-1, 1], before binning

    @property
    def length(self) -> int:
        """Number of tokens, S."""
        return len(self.template.ids) + len(self.text)

    def write(self, target: Ids) -> None:
        """Write the ids to the beginning of an array."""
        template, contents, begin = self.template, self.contents, len(self.text)
        blanks = template.blanks
        target[0] = template.ids[0]
        target[1 : 1 + begin] = self.text
        body = target[begin : self.length]
        body[1:] = template.ids[1:]
        body[blanks.images] = contents.images
        body[blanks.actions] = contents.actions
        body[blanks.state] = contents.state

    def sequence(self) -> TokenSequence:
        """The row as ids and labels."""
        ids = np.empty(self.length, np.int64)
        self.write(ids)
        is_prompt = np.arange(self.length) < self.template.prompt_length + len(self.text)
        return TokenSequence(ids, np.where(is_prompt, IGNORED_LABEL, ids), self.chunk)


def assemble(rows: Sequence[Row], layout: TokenLayout, *, length_multiple: int = 1) -> Batch:
    """The batch that `collate` makes of these rows' sequences, without searching the rows for what is known of them."""
    if not rows:
        return collate([], layout, length_multiple=length_multiple)
    lengths = [row.length for row in rows]
    longest = -(-max(lengths) // length_multiple) * length_multiple
    input_ids = np.full((len(rows), longest), layout.pad, np.int64)
    for row, target in zip(rows, input_ids, strict=True):
        row.write(target)
    parts = _Parts()
    for number, row in enumerate(rows):
        parts.add(row.template.index, row=number, text=len(row.text), begin=number * longest)
    supervised = torch.cat(parts.supervised)
    targets = torch.from_numpy(input_ids).view(-1)[supervised + 1]
    weighted = (targets >= layout.weighted_first) & (targets <= layout.weighted_last)
    chunks = [row.chunk for row in rows if row.chunk is not None]
    prompt_lengths = torch.tensor(parts.prompt_lengths, dtype=torch.int64)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        supervised=supervised,
        targets=targets,
        action_rows=torch.tensor(parts.action_rows, dtype=torch.int64),
        prompt_lengths=prompt_lengths,
        action_index=torch.cat(parts.action_index) if parts.action_index else torch.empty((0, 0, 0), dtype=torch.int64),
        image_index=torch.cat(parts.image_index),
        image_slot=torch.cat(parts.image_slot),
        actions=torch.from_numpy(np.stack(chunks)) if chunks else None,
        longest_prompt=max(parts.prompt_lengths, default=0),
        weighted_targets=int(weighted.sum()),
        tokens=sum(lengths),
    )


class _Parts:
    """The index of a batch, row by row."""

    def __init__(self) -> None:
        self.supervised: list[torch.Tensor] = []
        self.action_rows: list[int] = []
        self.prompt_lengths: list[int] = []
        self.action_index: list[torch.Tensor] = []
        self.image_index: list[torch.Tensor] = []
        self.image_slot: list[torch.Tensor] = []
        self._count = 0

    def add(self, index: Batch, *, row: int, text: int, begin: int) -> None:
        """Add a row.

        Args:
            index: of its template.
            text: number of the ids of its text.
            begin: flat position of its first id in the batch.
        """
        self.supervised.append(index.supervised + (begin + text))
        if len(index.action_rows):
            self.action_rows.append(row)
            self.prompt_lengths.append(index.longest_prompt + text)
            self.action_index.append(index.action_index + self._count)
        self.image_index.append(index.image_index + self._count)
        self.image_slot.append(index.image_slot)
        self._count += len(index.supervised)
