"""From a spec's finished token rows to rows in memory-mapped files that fit the experiment."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from vlatrack.data.formats.rynnvla.records import Progress, Records
from vlatrack.data.row_checks import RowCounts, RowRules, check_rows
from vlatrack.data.rows import TokenRows
from vlatrack.data.store.token_store import TokenStore
from vlatrack.metrics.schema import SPLITS, TRAIN
from vlatrack.spec.data import RynnVlaRecordsSource
from vlatrack.spec.experiment import ExperimentSpec
from vlatrack.spec.policy import ExplicitRanges
from vlatrack.tokens.layout import TokenLayout

ROWS = "rows"
"""The folder of converted rows in the store."""


def row_sources(spec: ExperimentSpec, names: Collection[str] = SPLITS) -> dict[str, RynnVlaRecordsSource]:
    """The splits that have finished token rows."""
    sources = {name: getattr(spec.data, name) for name in SPLITS if name in names}
    return {name: source for name, source in sources.items() if isinstance(source, RynnVlaRecordsSource)}


def row_fingerprints(spec: ExperimentSpec, store: TokenStore, names: Collection[str] = SPLITS) -> dict[str, str]:
    """Digests of the rows of each split that has finished ones, for training also of the ratios of their lists.

    Rows are converted the first time.

    Raises:
        DataError: a record cannot be read.
    """
    digests = {}
    for name, source in row_sources(spec, names).items():
        rows = Records(source.path, source.root).rows(store.folder / ROWS)
        ratios = [(each.start, each.stop, each.ratio) for each in rows.lists if name == TRAIN and each.ratio != 1]
        shown = f"{rows.fingerprint()} {ratios}"
        digests[f"data.{name}"] = hashlib.sha256(shown.encode()).hexdigest() if ratios else rows.fingerprint()
    return digests


def open_rows(
    source: RynnVlaRecordsSource,
    spec: ExperimentSpec,
    *,
    layout: TokenLayout,
    vocabulary: int,
    folder: Path,
    progress: Progress | None = None,
) -> tuple[TokenRows, RowCounts]:
    """The rows that a split names, converted once and checked, and how many there are of each kind.

    Args:
        layout, vocabulary: the ids of the backbone.
        folder: where converted rows are kept.

    Raises:
        DataError: a record cannot be read, or does not fit the experiment.
    """
    records = Records(source.path, source.root)
    rows = records.rows(folder, progress)
    return rows, check_rows(rows, row_rules(spec, layout=layout, vocabulary=vocabulary), records.place)


def row_rules(spec: ExperimentSpec, *, layout: TokenLayout, vocabulary: int) -> RowRules:
    """What the experiment expects of finished token rows."""
    ranges = spec.tokenizer.statistics
    assert isinstance(ranges, ExplicitRanges), "the spec demands it with such rows"
    return RowRules(
        layout=layout,
        vocabulary=vocabulary,
        max_length=spec.backbone.max_seq_len,
        bins=spec.tokenizer.bins,
        action_dim=spec.action_head.action_dim,
        horizon=spec.action_head.time_horizon,
        state_dim=len(ranges.state_low) if spec.data.use_state else None,
        cameras=len(spec.data.cameras),
        history=spec.data.moments,
        image_size=spec.tokenizer.image.image_size,
    )
