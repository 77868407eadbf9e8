"""What the materialization engine remembers of a view between two nights: which rows it put into the online store.

A snapshot holds key, moment and hash of each row that was written, under a token that the online store holds too. While
rows are written there is also the intent, so that a run that is killed forgets nothing of what it may have written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from evensong.data import storage
from evensong.types import TIMESTAMP, Frame

MOMENT, HASH = "__moment", "__hash"
_TOKEN = "__token"


class Remembered(NamedTuple):
    """Rows that were put into the online store: the keys, MOMENT and HASH; a key may have several."""

    rows: Frame
    """HASH is null where the store may hold another row, or none, by now."""
    agrees: bool
    """Whether the store holds these very rows."""


class Snapshot:
    """The memory of one view, in a folder or below an S3 prefix."""

    def __init__(self, folder: str, view: str, keys: Sequence[str]) -> None:
        self._place = storage.join(folder, f"{view}.parquet")
        self._intent = storage.join(folder, f"{view}.intent.parquet")
        self._keys = list(keys)

    def recall(self, token: str | None, like: Frame) -> Remembered:
        """What was written so far; `like` has the columns in their types, other ones are forgotten.

        Args:
            token: what the online store says; None: nothing that can be relied on.
        """
        schema = like.select(*self._keys, MOMENT, HASH).schema
        held = _read(self._place, schema)
        agrees = held is not None and token is not None and bool((held[_TOKEN] == token).all())
        if held is None or not agrees:
            held = pl.DataFrame(schema={**schema, _TOKEN: pl.String}) if held is None else _unsure(held)
        found = [held.select(*schema)]
        if (intended := _read(self._intent, schema)) is not None:
            found.append(_unsure(intended).select(*schema))
        return Remembered(pl.concat(found), agrees)

    def intend(self, rows: Frame) -> None:
        """Remember rows that may soon be in the store, beside those of the snapshot."""
        storage.write_frame(self._intent, rows.with_columns(pl.lit("").alias(_TOKEN)))

    def keep(self, rows: Frame, token: str) -> None:
        """Remember the rows that the store holds under the token."""
        storage.write_frame(self._place, rows.with_columns(pl.lit(token).alias(_TOKEN)))

    def settle(self) -> None:
        """Forget the intent: the store agrees with the snapshot."""
        storage.remove(self._intent)


def newest_moments(rows: Frame, keys: Sequence[str]) -> Frame:
    """The newest MOMENT of each key."""
    return rows.group_by(keys).agg(pl.col(MOMENT).max())


def _read(place: str, schema: pl.Schema) -> Frame | None:
    if not storage.exists(place):
        return None
    found = storage.read_frame(place)
    return found if dict(found.schema) == {**schema, _TOKEN: pl.String()} else None


def _unsure(rows: Frame) -> Frame:
    return rows.with_columns(pl.lit(None, pl.UInt64).alias(HASH))


def stamped(rows: Frame, keys: Sequence[str], moments: pl.Series) -> Frame:
    """The rows as they are remembered."""
    hashes = rows.drop(keys).hash_rows(seed=0)
    return rows.select(keys).with_columns(moments.cast(TIMESTAMP).alias(MOMENT), hashes.alias(HASH))
