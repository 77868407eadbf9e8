"""Columns of lists out of flat values, without a Python object a row."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray


def lists(values: pl.Series, offsets: NDArray[np.int64]) -> pl.Series:
    """A list column: row i holds `values[offsets[i]:offsets[i + 1]]`."""
    array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values.to_arrow())
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


def slices(values: pl.Series, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> pl.Series:
    """A list column: row i holds `values[starts[i]:ends[i]]`."""
    lengths = ends - starts
    offsets = np.concatenate([[0], lengths.cumsum()])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    return lists(values.gather(rows), offsets)
