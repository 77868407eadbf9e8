"""Crosses of what a user is with what an item is, for the ranker: the product of their values, hashed into buckets.

The values of users and of items are hashed apart, once each; a pair's bucket follows from the two. Training, evaluation
and the service call the same functions.

Legend: N rows, S slates (one user each), K candidates, U and I categorical columns of users and items, X crosses.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.features.column_readers import FrameReader, reader_of
from evensong.features.columns import CategoricalColumn, ColumnSet, PairCross
from evensong.features.crosses import combined64, hash64
from evensong.types import Frame, Value

#: The bits of 64-bit hashes.
Hashes = NDArray[np.int64]


class PairCrosses(Value):
    """The declared crosses with the columns that they combine; nothing is learnt of the data."""

    crosses: tuple[PairCross, ...] = ()
    users: ColumnSet = ColumnSet(())
    items: ColumnSet = ColumnSet(())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Buckets of each cross."""
        return tuple(cross.num_buckets for cross in self.crosses)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the crosses."""
        return tuple(cross.name for cross in self.crosses)

    def check(self, users: Frame, items: Frame) -> None:
        """Refuse columns that the data lacks.

        Raises:
            SourceError: a frame lacks a column, or it is of the wrong type.
        """
        for columns, frame in ((self.users, users), (self.items, items)):
            _hashed(columns, FrameReader(frame, fitting=True), len(frame))

    def user_hashes(self, users: Frame) -> Hashes:
        """`[N, U]`."""
        return _hashed(self.users, reader_of(users), len(users))

    def item_hashes(self, items: Frame) -> Hashes:
        """`[N, I]`."""
        return _hashed(self.items, reader_of(items), len(items))

    def buckets(self, user_SU: Hashes, item_SKI: Hashes) -> NDArray[np.int32]:
        """The bucket of each pair in each cross, `[S, K, X]`."""
        parts = {
            **{f"users.{column.name}": user_SU[:, None, place] for place, column in enumerate(self.users.root)},
            **{f"items.{column.name}": item_SKI[:, :, place] for place, column in enumerate(self.items.root)},
        }
        found = np.zeros((*item_SKI.shape[:2], len(self.crosses)), np.int32)
        for place, cross in enumerate(self.crosses):
            hashes = combined64([parts[name].view(np.uint64) for name in cross.columns])
            found[..., place] = hashes % np.uint64(cross.num_buckets)
        return found


def _hashed(columns: ColumnSet, reader: FrameReader, num_rows: int) -> Hashes:
    found = np.zeros((num_rows, len(columns.root)), np.int64)
    for place, column in enumerate(columns.root):
        assert isinstance(column, CategoricalColumn)
        texts = pl.Series(reader.categories(column), dtype=pl.String)
        found[:, place] = hash64(texts).view(np.int64)
    return found
