"""Rows of the same kind differ in a few places: a template is a row with blanks, and a batch is many of them filled in.

What a template looks like is decided by `vlatrack.tokens.prompts` alone, and how its supervision is indexed by
`vlatrack.tokens.batch`: both are asked once, with marks in the blanks.

Legend: S positions of a row, H steps of a chunk, A / N numbers of an action / a state, M images of a row, K codes of an
image.
"""

import math
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
    """What stands in the blanks of a row, or of several, in the order in which a row has it."""

    state: Ids  # [..., N], N = 0 without a state
    images: NDArray[np.integer]  # [..., M, K]
    actions: Ids  # [..., number of actions, A]


@dataclass(frozen=True)
class RowTemplate:
    """A row without its text, which stands behind its first id."""

    ids: Ids  # [S] with anything in the blanks
    blanks: Contents  # the position of each
    index: Batch  # of this row, as `vlatrack.tokens.batch` has it
    prompt_length: int

    side: int  # rows and columns of the codes of an image
    row_step: int  # positions from one row of codes to the next

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
        side = math.isqrt(images[1])
        squares = blanks.images.reshape(images[0], side, side)
        row_step = int(squares[0, 1, 0] - squares[0, 0, 0])
        regular = squares[:, :1, :1] + np.arange(side)[:, None] * row_step + np.arange(side)
        assert (squares == regular).all(), "the rows of an image are equally far apart"
        return cls(ids, blanks, collate([TokenSequence(ids, labels)], layout), prompt_length, side, row_step)


@dataclass(frozen=True)
class RowGroup:
    """Rows of one template, and what to fill in."""

    template: RowTemplate
    places: Ids  # [n] of the rows in their batch, rising
    texts: Sequence[Ids]  # ids of the text of each
    contents: Contents  # [n, N], [n, M, K] and [n, number of actions, A]
    chunks: NDArray[np.float32] | None = None  # [n, H, A] the answers' actions in [-1, 1], before binning

    @property
    def text_lengths(self) -> Ids:
        """[n] number of ids of each text."""
        return np.array([len(text) for text in self.texts], np.int64)

    def bodies(self) -> Ids:
        """[n, S] the rows without their texts."""
        template, contents, count = self.template, self.contents, len(self.places)
        bodies = np.tile(template.ids, (count, 1))
        bodies[:, template.blanks.state] = contents.state
        bodies[:, template.blanks.actions] = contents.actions
        side, step = template.side, template.row_step
        for number, first in enumerate(template.blanks.images[:, 0].tolist()):
            square = bodies[:, first : first + side * step].reshape(count, side, step)[:, :, :side]
            square[:] = contents.images[:, number].reshape(count, side, side)
        return bodies

    def sequence(self) -> TokenSequence:
        """The only row, as ids and labels."""
        (body,), (text,) = self.bodies(), self.texts
        ids = np.concatenate([body[:1], text, body[1:]])
        is_prompt = np.arange(len(ids)) < self.template.prompt_length + len(text)
        chunk = None if self.chunks is None else self.chunks[0]
        return TokenSequence(ids, np.where(is_prompt, IGNORED_LABEL, ids), chunk)


def assemble(groups: Sequence[RowGroup], layout: TokenLayout, *, length_multiple: int = 1) -> Batch:
    """The batch that `collate` makes of the rows of these groups, without searching the rows for what is known of them.

    The cost of a row is that of copying it: everything else is done for a group at once.
    """
    if not groups:
        return collate([], layout, length_multiple=length_multiple)
    count = sum(len(group.places) for group in groups)
    texts, bodies, supervised = (np.empty(count, np.int64) for _ in range(3))
    for group in groups:
        texts[group.places], bodies[group.places] = group.text_lengths, len(group.template.ids)
        supervised[group.places] = len(group.template.index.supervised)
    longest = -(-int((texts + bodies).max()) // length_multiple) * length_multiple
    input_ids = np.full((count, longest), layout.pad, np.int64)
    for group in groups:
        written = group.bodies()
        for length in np.unique(texts[group.places]).tolist():
            own = texts[group.places] == length
            places = group.places[own]
            input_ids[places, length : length + written.shape[1]] = written[own]
            input_ids[places, 0] = written[own, 0]
            input_ids[places, 1 : 1 + length] = [text for text in group.texts if len(text) == length]
    index = _index(groups, texts, np.cumsum(supervised) - supervised, longest)
    targets = input_ids.ravel()[index["supervised"] + 1]
    weighted = (targets >= layout.weighted_first) & (targets <= layout.weighted_last)
    chunks = [group.chunks for group in groups if group.chunks is not None]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        actions=torch.from_numpy(np.concatenate(chunks)[index.pop("chunk_order")]) if chunks else None,
        longest_prompt=int(index["prompt_lengths"].max(initial=0)),
        weighted_targets=int(weighted.sum()),
        tokens=int((texts + bodies).sum()),
        **{name: torch.from_numpy(values) for name, values in index.items() if name != "chunk_order"},
    )


def _index(groups: Sequence[RowGroup], texts: Ids, first: Ids, longest: int) -> dict[str, Ids]:
    """Where the supervised positions of a batch are, in the order of its rows.

    Args:
        texts: [B] length of each row's text.
        first: [B] the index in V of each row's first supervised position.
        longest: S of the batch.
    """
    with_actions = [group for group in groups if len(group.template.index.action_rows)]
    parts: dict[str, list[tuple[RowGroup, Ids]]] = {
        "supervised": [
            (g, g.template.index.supervised.numpy() + (g.places * longest + texts[g.places])[:, None]) for g in groups
        ],
        "image_index": [(g, g.template.index.image_index.numpy() + first[g.places][:, None]) for g in groups],
        "image_slot": [(g, np.tile(g.template.index.image_slot.numpy(), (len(g.places), 1))) for g in groups],
        "action_index": [
            (g, g.template.index.action_index.numpy() + first[g.places][:, None, None]) for g in with_actions
        ],
        "prompt_lengths": [(g, g.template.index.longest_prompt + texts[g.places]) for g in with_actions],
    }
    index = {name: _in_order(part) for name, part in parts.items()}
    rows = np.concatenate([group.places for group in with_actions]) if with_actions else np.empty(0, np.int64)
    shape = (0, 0, 0) if not with_actions else (len(rows), *with_actions[0].template.index.action_index.shape[1:])
    index["action_index"] = index["action_index"].reshape(shape)
    index["chunk_order"] = np.argsort(rows, kind="stable")
    index["action_rows"] = rows[index["chunk_order"]]
    return index


def _in_order(parts: Sequence[tuple[RowGroup, Ids]]) -> Ids:
    """The values of each row, [n, ...] of each group, one row of the batch after another."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0][1]).ravel()
    rows = [(place, values) for group, of_group in parts for place, values in zip(group.places, of_group, strict=True)]
    rows.sort(key=lambda row: row[0])
    return np.concatenate([np.empty(0, np.int64), *(np.ravel(values) for _, values in rows)])
