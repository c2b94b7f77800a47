"""Rows of the same kind differ in a few places: a template is a row with blanks, and a batch is many of them filled in.

What a template looks like is decided by `vlatrack.tokens.prompts` alone, and how its supervision is indexed by
`vlatrack.tokens.batch`: both are asked once, with marks in the blanks.

Legend: S positions of a row, H steps of a chunk, A / N numbers of an action / a state, M images of a row, K codes of an
image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

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

    @cached_property
    def text_lengths(self) -> Ids:
        """[n] number of ids of each text."""
        return np.array([len(text) for text in self.texts], np.int64)

    def write(self, padded: Ids) -> None:
        """Write the rows to their places in ``padded`` [B, S], as far as they go. Nothing is copied twice."""
        template, contents = self.template, self.contents
        flat, length = padded.reshape(-1), padded.shape[1]
        begins = self.places * length + self.text_lengths  # behind its text, a row is the template from here on
        _views(flat, (len(template.ids),), (1,))[begins] = template.ids
        flat[begins[:, None] + template.blanks.state] = contents.state
        flat[begins[:, None, None] + template.blanks.actions] = contents.actions
        side, step = template.side, template.row_step
        corners = begins[:, None] + template.blanks.images[:, 0]
        _views(flat, (side, side), (step, 1))[corners] = contents.images.reshape(*corners.shape, side, side)
        padded[self.places, 0] = template.ids[0]
        for place, text in zip(self.places.tolist(), self.texts, strict=True):
            padded[place, 1 : 1 + len(text)] = text

    def sequence(self) -> TokenSequence:
        """The only row, as ids and labels."""
        (text,) = self.texts
        ids = np.empty((1, len(text) + len(self.template.ids)), np.int64)
        replace(self, places=np.zeros(1, np.int64)).write(ids)
        is_prompt = np.arange(ids.size) < self.template.prompt_length + len(text)
        chunk = None if self.chunks is None else self.chunks[0]
        return TokenSequence(ids[0], np.where(is_prompt, IGNORED_LABEL, ids[0]), chunk)


def _views(flat: Ids, shape: tuple[int, ...], steps: tuple[int, ...]) -> Ids:
    """[n, ...] of each place in ``flat``, the numbers from there on in such a shape.

    Args:
        steps: places from one number to the next, of each axis.
    """
    reach = sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    strides = (flat.itemsize, *(step * flat.itemsize for step in steps))
    return np.ndarray((flat.size - reach, *shape), flat.dtype, flat, strides=strides)


def assemble(groups: Sequence[RowGroup], layout: TokenLayout, *, length_multiple: int = 1) -> Batch:
    """The batch that `collate` makes of the rows of these groups, without searching the rows for what is known of them.

    The cost of a row is that of writing it: everything else is done for a group at once.
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
        group.write(input_ids)
    index = _index(groups, texts, np.cumsum(supervised) - supervised, longest)
    targets = input_ids.ravel()[index["supervised"] + 1]
    weighted = (targets >= layout.weighted_first) & (targets <= layout.weighted_last)
    chunks = [(group.places, group.chunks) for group in groups if group.chunks is not None]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        actions=torch.from_numpy(_in_order(chunks).reshape(-1, *chunks[0][1].shape[1:])) if chunks else None,
        longest_prompt=int(index["prompt_lengths"].max(initial=0)),
        weighted_targets=int(np.count_nonzero(weighted)),
        tokens=int((texts + bodies).sum()),
        **{name: torch.from_numpy(values) for name, values in index.items()},
    )


def _index(groups: Sequence[RowGroup], texts: Ids, first: Ids, longest: int) -> dict[str, Ids]:
    """Where the supervised positions of a batch are, in the order of its rows.

    Args:
        texts: [B] length of each row's text.
        first: [B] the index in V of each row's first supervised position.
        longest: S of the batch.
    """
    parts: dict[str, list[tuple[Ids, Ids]]] = {
        name: []
        for name in ("supervised", "image_index", "image_slot", "action_rows", "action_index", "prompt_lengths")
    }
    shape = (0, 0, 0)
    for group in groups:
        own, places, begins = group.template.index, group.places, first[group.places][:, None]
        behind_text = places * longest + texts[places]
        parts["supervised"].append((places, own.supervised.numpy() + behind_text[:, None]))
        if own.image_index.numel():
            parts["image_index"].append((places, own.image_index.numpy() + begins))
            parts["image_slot"].append((places, np.tile(own.image_slot.numpy(), (len(places), 1))))
        if own.action_index.numel():
            parts["action_rows"].append((places, places))
            parts["action_index"].append((places, own.action_index.numpy() + begins[:, None]))
            parts["prompt_lengths"].append((places, own.longest_prompt + texts[places]))
            shape = (-1, *own.action_index.shape[1:])
    index = {name: _in_order(part) for name, part in parts.items()}
    return {**index, "action_index": index["action_index"].reshape(shape)}


def _in_order(parts: Sequence[tuple[Ids, NDArray[Any]]]) -> NDArray[Any]:
    """The values of each row, one row of the batch after another.

    Args:
        parts: of each group, the places [n] of its rows and their values [n, ...].
    """
    if not parts:
        return np.empty(0, np.int64)
    if len(parts) == 1:
        return parts[0][1].ravel()
    sizes = np.zeros(1 + max(int(places[-1]) for places, _ in parts), np.int64)
    for places, values in parts:
        sizes[places] = values[0].size
    begins = np.cumsum(sizes) - sizes
    found = np.empty(int(sizes.sum()), parts[0][1].dtype)
    for places, values in parts:
        found[begins[places][:, None] + np.arange(values[0].size)] = values.reshape(len(places), -1)
    return found
