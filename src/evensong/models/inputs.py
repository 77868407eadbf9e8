"""Owns the step from frames of features to the arrays that both towers read.

Legend: B users, N items, L history length, C top categories, W words of a title, F numeric features of a user,
I indices and V numbers of the declared columns (features/model_columns.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.features.model_columns import ModelColumns
from evensong.models.vocabulary import Vocabulary, words
from evensong.types import CATEGORY_SEPARATOR, Frame

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]

NUM_WORDS = 16
NUM_LEVELS = 3
DAY_SECONDS = 86_400.0
USER_FEATURES: dict[str, pl.DataType] = {
    "recent_item_ids": pl.List(pl.String()),
    "last_interaction_seconds": pl.Int64(),
    "num_interactions": pl.Int64(),
    "top_categories": pl.List(pl.String()),
    "top_category_shares": pl.List(pl.Float32()),
    "num_events_1d": pl.Int64(),
    "num_events_7d": pl.Int64(),
    "num_events_30d": pl.Int64(),
}
"""What the models read of a user; a column that is missing counts as null."""
#: The numeric features of a user, in the order of `UserInputs.numeric_BF`.
USER_NUMERIC = ("num_events_1d", "num_events_7d", "num_events_30d", "num_interactions", "days_since_last")

#: Up to so many users, as in a request, are encoded value by value: an operation on a frame costs more than they do.
FEW = 8

_Rows = TypeVar("_Rows", bound="_Columns")


@dataclass(frozen=True)
class _Columns:
    def take(self: _Rows, rows: Any) -> _Rows:
        """The same columns for some rows."""
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))


@dataclass(frozen=True)
class UserInputs(_Columns):
    """What the user tower reads."""

    history_BL: Ints
    """Rows of the item vocabulary, newest last, 0 where there is none; items that it does not know are left out."""
    numeric_BF: Floats
    """`USER_NUMERIC`, each as log(1 + x)."""
    category_BC: Ints
    """Rows of the first category level's vocabulary."""
    share_BC: Floats
    """The share of each of them in the user's history."""
    index_BI: Ints
    """Rows of the declared columns' own tables."""
    value_BV: Floats
    """The declared columns' numbers and vectors; the ranker reads the first ones, the numbers."""
    hash_BU: Longs
    """Hashes of what crosses with items read of the user; for the ranker."""

    @property
    def has_history_B(self) -> NDArray[np.bool_]:
        """Whether there is anything to go by."""
        return (self.history_BL[:, -1] != 0).astype(bool)


@dataclass(frozen=True)
class ItemInputs(_Columns):
    """What the item tower reads."""

    id_N: Ints
    """Row of the item vocabulary; its out-of-vocabulary row for an item that nobody wanted yet."""
    category_N3: Ints
    word_NW: Ints
    price_N2: Floats
    """log(1 + price), and whether there is one."""
    index_NI: Ints
    """Rows of the declared columns' own tables."""
    value_NV: Floats
    """The declared columns' numbers and vectors."""


@dataclass(frozen=True)
class Vocabularies:
    """The fitted state of the towers' inputs."""

    items: Vocabulary
    categories: tuple[Vocabulary, Vocabulary, Vocabulary]
    words: Vocabulary
    history_length: int
    num_top_categories: int
    price_mean: float = 0.0
    price_std: float = 1.0
    columns: ModelColumns = field(default_factory=ModelColumns.none)
    """The declared columns; saved in a folder of their own."""

    @classmethod
    def fit(
        cls,
        items: Frame,
        wanted: pl.Series,
        history_length: int,
        num_top_categories: int,
        columns: ModelColumns | None = None,
    ) -> Vocabularies:
        """Fit on the items known and on the ids that occur as positives (`wanted`): only those get an own row."""
        levels = [_category_levels(path) for path in items["category_path"].to_list()]
        texts = [word for title in items["title"].to_list() for word in words(title)]
        prices = np.log1p(np.maximum(items["price"].drop_nulls().to_numpy(), 0.0)) if len(items) else np.zeros(0)
        known = wanted.unique().sort().to_list()
        first, second, third = (
            Vocabulary.fit((path[level] for path in levels), num_hashed=8) for level in range(NUM_LEVELS)
        )
        return cls(
            items=Vocabulary(known, num_hashed=1),
            categories=(first, second, third),
            words=Vocabulary.fit(texts, num_hashed=256, min_count=2, max_size=20_000),
            history_length=history_length,
            num_top_categories=num_top_categories,
            price_mean=float(prices.mean()) if len(prices) else 0.0,
            price_std=max(float(prices.std()), 1e-3) if len(prices) else 1.0,
            columns=columns or ModelColumns.none(),
        )

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, for JSON; without the columns."""
        return {
            "items": self.items.to_dict(),
            "categories": [level.to_dict() for level in self.categories],
            "words": self.words.to_dict(),
            "history_length": self.history_length,
            "num_top_categories": self.num_top_categories,
            "price_mean": self.price_mean,
            "price_std": self.price_std,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], columns: ModelColumns | None = None) -> Vocabularies:
        """The vocabularies that `to_dict` described, with these columns."""
        first, second, third = (Vocabulary.from_dict(level) for level in value["categories"])
        return cls(
            items=Vocabulary.from_dict(value["items"]),
            categories=(first, second, third),
            words=Vocabulary.from_dict(value["words"]),
            **{name: value[name] for name in ("history_length", "num_top_categories", "price_mean", "price_std")},
            columns=columns or ModelColumns.none(),
        )


def encode_items(items: Frame, vocabularies: Vocabularies) -> ItemInputs:
    """Arrays of the items, in the frame's order; needs `item_id, title, category_path, price`."""
    ids = vocabularies.items.indices(items["item_id"].to_list())
    word = np.zeros((len(items), NUM_WORDS), np.int32)
    for row, title in enumerate(items["title"].to_list()):
        indices = vocabularies.words.indices(words(title)[:NUM_WORDS])
        word[row, : len(indices)] = indices
    price = items["price"].cast(pl.Float64).to_numpy()
    has_price = np.isfinite(price)
    scaled = (
        np.log1p(np.maximum(np.where(has_price, price, 0.0), 0.0)) - vocabularies.price_mean
    ) / vocabularies.price_std
    prices = np.stack([np.where(has_price, scaled, 0.0), has_price], 1).astype(np.float32)
    own = vocabularies.columns.item_arrays(items)
    return ItemInputs(ids, encode_categories(items, vocabularies), word, prices, own.index_NI, own.value_NF)


def encode_categories(items: Frame, vocabularies: Vocabularies) -> Ints:
    """Rows of the three levels' vocabularies, 0 for none; each different path is looked up once."""
    paths = items["category_path"].to_list()
    rows: dict[str | None, list[int]] = {}
    for path in paths:
        if path not in rows:
            levels = zip(vocabularies.categories, _category_levels(path), strict=True)
            rows[path] = [vocabulary.index(name) for vocabulary, name in levels]
    return np.array([rows[path] for path in paths], np.int32).reshape(len(paths), NUM_LEVELS)


def encode_users(users: Frame, vocabularies: Vocabularies, now: datetime | None = None) -> UserInputs:
    """Arrays of the users, in the frame's order.

    Args:
        users: the features of the user views; nulls mean an unknown user.
        vocabularies: fitted beside the towers.
        now: the moment that "days since the last interaction" counts to; none: each row's own `event_timestamp`.
    """
    arrays = vocabularies.columns.user_arrays(users)
    own = (arrays.index_NI, arrays.value_NF, vocabularies.columns.user_hashes(users))
    if len(users) <= FEW:
        return UserInputs(*_encode_few(users, vocabularies, now), *own)
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in USER_FEATURES.items() if name not in users.columns]
    users = users.with_columns(*missing) if missing else users
    history = _history(users["recent_item_ids"], vocabularies)
    category, share = _top_categories(users, vocabularies)
    return UserInputs(history, _numeric(users, now), category, share, *own)


def seconds(users: Frame, now: datetime | None) -> NDArray[np.float64]:
    """The moment of each row in unix seconds: `now`, or the row's own `event_timestamp`."""
    if now is not None:
        return np.full(len(users), now.timestamp())
    return users["event_timestamp"].dt.epoch("us").to_numpy() / 1e6


def category_level(paths: pl.Series, level: int) -> list[str | None]:
    """The name of one level (0 the broadest) of many category paths."""
    return [_category_levels(path)[level] for path in paths.to_list()]


def _category_levels(path: str | None) -> list[str | None]:
    """The path up to each level, so that the same word below two parents stays two categories."""
    parts = path.split(CATEGORY_SEPARATOR) if path else []
    return [CATEGORY_SEPARATOR.join(parts[: n + 1]) if n < len(parts) else None for n in range(NUM_LEVELS)]


def _history(lists: pl.Series, vocabularies: Vocabularies) -> Ints:
    length = vocabularies.history_length
    rows_BL = np.zeros((len(lists), length), np.int32)
    for start in range(0, len(lists), 50_000):  # bounds the memory of a million exploded lists
        part = lists.slice(start, 50_000).cast(pl.List(pl.String)).list.tail(length)
        sizes = part.list.len().fill_null(0).to_numpy().astype(np.int64)
        if not sizes.sum():
            continue
        flat = vocabularies.items.known(part.filter(part.list.len().fill_null(0) > 0).explode())
        row = np.repeat(np.arange(len(part)), sizes)
        row, flat = row[flat > 0], flat[flat > 0]
        kept = np.bincount(row, minlength=len(part))
        within = np.arange(len(row)) - np.repeat(np.cumsum(kept) - kept, kept)
        rows_BL[start + row, length - np.repeat(kept, kept) + within] = flat
    return rows_BL


def _numeric(users: Frame, now: datetime | None) -> Floats:
    counts = [users[name].cast(pl.Float64).fill_null(0.0).to_numpy() for name in USER_NUMERIC[:-1]]
    last = users["last_interaction_seconds"].cast(pl.Float64).to_numpy()
    return _scaled(counts, last, seconds(users, now))


def _scaled(counts: list[NDArray[np.float64]], last: NDArray[np.float64], moment: NDArray[np.float64]) -> Floats:
    days = np.maximum(np.where(np.isfinite(last), moment - last, 0.0), 0.0) / DAY_SECONDS
    return np.log1p(np.maximum(np.stack([*counts, days], 1), 0.0)).astype(np.float32)


def _encode_few(users: Frame, vocabularies: Vocabularies, now: datetime | None) -> tuple[Ints, Floats, Ints, Floats]:
    """What the vectorised way gives, for a handful of users (tested)."""
    read = [name for name in USER_FEATURES if name in users.columns]
    rows = users.select(read).rows() if read else [()] * len(users)
    known = [dict(zip(read, row, strict=True)) for row in rows]
    length, width = vocabularies.history_length, vocabularies.num_top_categories
    history = np.zeros((len(users), length), np.int32)
    category, share = np.zeros((len(users), width), np.int32), np.zeros((len(users), width), np.float32)
    for row, values in enumerate(known):
        recent = (values.get("recent_item_ids") or [])[-length:]
        found = [place for item_id in recent if (place := vocabularies.items.known_index(item_id))]
        if found:
            history[row, -len(found) :] = found
        names = (values.get("top_categories") or [])[:width]
        category[row, : len(names)] = vocabularies.categories[0].indices(names)
        share[row, : len(names)] = (values.get("top_category_shares") or [])[: len(names)]
    counts = [np.array([values.get(name) or 0 for values in known], np.float64) for name in USER_NUMERIC[:-1]]
    last = np.array([values.get("last_interaction_seconds") for values in known], np.float64)
    return history, _scaled(counts, last, seconds(users, now)), category, share


def _top_categories(users: Frame, vocabularies: Vocabularies) -> tuple[Ints, Floats]:
    width = vocabularies.num_top_categories
    vocabulary = vocabularies.categories[0]
    category = np.zeros((len(users), width), np.int32)
    share = np.zeros((len(users), width), np.float32)
    names = users["top_categories"].cast(pl.List(pl.String)).list.head(width)
    sizes = names.list.len().fill_null(0).to_numpy().astype(np.int64)
    if sizes.sum():
        some = names.list.len().fill_null(0) > 0
        shares = users["top_category_shares"].cast(pl.List(pl.Float32)).list.head(width).filter(some).explode()
        row = np.repeat(np.arange(len(users)), sizes)
        within = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        category[row, within] = vocabulary.indices(names.filter(some).explode().to_list())
        share[row, within] = shares.to_numpy()
    return category, share
