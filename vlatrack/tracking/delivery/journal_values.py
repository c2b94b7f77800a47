"""The metric values of a journal in batches, as a tracker would have them; and the records of those that it lacks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from vlatrack.errors import TrackerError
from vlatrack.tracking.delivery.value_hashes import Hashes, ValueBatch, ValueHasher, is_among
from vlatrack.tracking.journal.records import JournalReader, Kind, Record

VALUES_AT_ONCE, MOST_RECORDS = 10_000, 1000
_LARGEST = 2**63


def metric_records(journal: Path) -> Iterator[list[Record]]:
    """The records of metrics, some thousand values at a time; those that no tracker takes, whose step or time is no
    whole number of 64 bits, are left out."""
    reader, limit = JournalReader(journal), 1
    while records := reader.read(limit):
        if records[0].kind == Kind.METRICS:
            values = sum(len(record.data) for record in records)
            limit = max(1, min(MOST_RECORDS, VALUES_AT_ONCE * len(records) // max(1, values)))
            yield [record for record in records if _has_plain_place(record)]


def values_of(records: Sequence[Record], key_of: Callable[[str], str], journal: Path) -> ValueBatch:
    """The values of records under a tracker's keys; TrackerError if one is no number."""
    counts = [len(record.data) for record in records]
    try:
        values = np.array([value for record in records for value in record.data.values()], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise TrackerError(f"{journal}: holds a metric that is no number ({error}); remove that line") from error
    return ValueBatch(
        keys=list(map(key_of, chain.from_iterable(record.data for record in records))),
        t_ms=np.repeat(np.array([record.t_ms for record in records], np.int64), counts),
        step=np.repeat(np.array([record.step or 0 for record in records], np.int64), counts),
        value=values,
    )


def records_with(found: Hashes, journal: Path, key_of: Callable[[str], str], hasher: ValueHasher) -> Iterator[Record]:
    """The records that hold one of these values, whose hashes are sorted, without their other values."""
    for records in metric_records(journal):
        hashes = hasher(values_of(records, key_of, journal))
        wanted = iter(is_among(hashes, found))
        for record in records:
            if data := {name: value for name, value in record.data.items() if next(wanted)}:
                yield replace(record, data=data)


def _has_plain_place(record: Record) -> bool:
    return all(type(number) is int and -_LARGEST <= number < _LARGEST for number in (record.step or 0, record.t_ms))
