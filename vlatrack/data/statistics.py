"""Value ranges of actions and states, taken from the training episodes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vlatrack.errors import DataError
from vlatrack.tokens.bins import ValueRange

_QUANTILES = (0.01, 0.99)


def value_range(values: Sequence[NDArray[np.float32]], how: Literal["minmax", "quantiles"]) -> ValueRange:
    """Low and high of each dimension over arrays [T, A]: extremes, or the 1 % and 99 % quantiles.

    Raises:
        DataError: a value is NaN or infinite.
    """
    stacked = np.concatenate(values).astype(np.float64)
    if not np.isfinite(stacked).all():
        where = sorted(set(np.nonzero(~np.isfinite(stacked))[1].tolist()))
        raise DataError(f"the training data has NaN or infinite values in dimension {where}")
    low, high = (
        (stacked.min(axis=0), stacked.max(axis=0)) if how == "minmax" else np.quantile(stacked, _QUANTILES, axis=0)
    )
    return ValueRange(tuple(low.tolist()), tuple(high.tolist()))
