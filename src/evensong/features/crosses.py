"""Crosses of categorical columns: Cartesian products of two or three, hashed into a fixed number of buckets.

The hash is 64 bits, computed from the values' bytes alone (BLAKE2b, RFC 7693, then splitmix64's finalizer to combine),
so a bucket means the same in every process, on every machine and in every version of the libraries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.types import Frame

#: Up to so many values each is hashed by itself.
_FEW = 64
#: What a null hashes to: no text does, whose hashes carry another prefix.
_NULL = int.from_bytes(hashlib.blake2b(b"null", digest_size=8, person=b"evensong.null").digest(), "little")


def hash64(values: pl.Series) -> NDArray[np.uint64]:
    """A stable 64-bit hash of each value's text; every null has the same one, which no text has by design."""
    if len(values) <= _FEW:
        return np.array([hash_text(text) for text in values.cast(pl.String).to_list()], np.uint64)
    distinct = values.cast(pl.String).unique(maintain_order=True)
    hashes = pl.Series([hash_text(text) for text in distinct], dtype=pl.UInt64)
    places = pl.DataFrame({"value": distinct, "hash": hashes})
    texts = pl.DataFrame({"value": values.cast(pl.String)})
    return texts.join(places, on="value", how="left", nulls_equal=True, maintain_order="left")["hash"].to_numpy()


def cross64(frame: Frame, columns: Sequence[str]) -> NDArray[np.uint64]:
    """A stable 64-bit hash of each row's combination of values; the order of the columns counts.

    Raises:
        ValueError: other than two or three columns, or one that the frame lacks.
    """
    if not 2 <= len(columns) <= 3 or len(set(columns)) != len(columns):
        raise ValueError(f"a cross takes two or three different columns, got {', '.join(columns) or 'none'}")
    if missing := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"the frame lacks {', '.join(missing)}; it has {', '.join(frame.columns)}")
    return combined64([hash64(frame[column]) for column in columns])


def combined64(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """The hash of each combination from the hashes of its values, which may be of any shapes that broadcast together;
    their order counts.
    """
    combined: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for values in hashes:
        combined = _mixed(combined ^ values)
    return combined


def cross(frame: Frame, columns: Sequence[str], num_buckets: int) -> NDArray[np.int32]:
    """The bucket of each row's combination, `0 … num_buckets - 1`."""
    if num_buckets < 1:
        raise ValueError(f"a cross needs at least one bucket, got {num_buckets}")
    return (cross64(frame, columns) % np.uint64(num_buckets)).astype(np.int32)


def add_crosses(frame: Frame, columns: Sequence[str], num_buckets: int, sizes: Sequence[int] = (2,)) -> Frame:
    """The frame with one more column for each combination of the given sizes, named `a_x_b` or `a_x_b_x_c`."""
    chosen = [names for size in sizes for names in combinations(columns, size)]
    return frame.with_columns(pl.Series("_x_".join(names), cross(frame, names, num_buckets)) for names in chosen)


def hash_text(text: str | None) -> int:
    """The hash of one value."""
    if text is None:
        return _NULL
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"evensong.text").digest(), "little")


def _mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of the 64-bit numbers, so nothing collides here."""
    hashes = hashes + np.uint64(0x9E3779B97F4A7C15)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))
