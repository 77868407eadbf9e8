"""A block of rows on its way into an online store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl
import pyarrow as pa


class Rows(NamedTuple):
    """A block of entities with everything that a table holds of them, a row an entity in every part."""

    keys: pa.BinaryArray
    """Feast's entity keys."""
    values: Mapping[str, pa.BinaryArray]
    """Feature to its serialized values."""
    columns: Mapping[str, pl.Series]
    """Feature to its values as they are."""
    moments: pl.Series
    created: pl.Series | None = None
    ours: pl.Series | None = None
    """The newest moment that the writer itself has put there of each key before: an older row may replace it."""
