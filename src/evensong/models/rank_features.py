"""Owns the ranker's features: one function assembles them for training, evaluation and serving alike.

Legend: S slates (one user at one moment each), K candidates of a slate, L history length, D embedding dimension,
N items of the catalogue, F features, M numbers of the items' declared columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.features.model_columns import ModelColumns
from evensong.models.inputs import (
    DAY_SECONDS,
    NUM_LEVELS,
    USER_NUMERIC,
    UserInputs,
    Vocabularies,
    encode_categories,
)
from evensong.types import Frame

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

POPULARITY = ("item_events_1d", "item_events_7d", "item_events_30d", "item_events_total", "item_users_30d")

FEATURES = (
    "retriever_logit",
    "similarity_newest",
    "similarity_max",
    "similarity_mean",
    *(f"log_{name}" for name in POPULARITY),
    "trend_7d",
    "trend_1d",
    "events_per_user_30d",
    "log_age_days",
    "freshness",
    "taste_share",
    "history_share_level_1",
    "history_share_level_2",
    "history_share_level_3",
    "price_difference",
    "price_distance",
    *(f"user_{name}" for name in USER_NUMERIC),
)
"""The columns, in order. Shares and similarities lie in [-1, 1]; `log_x` is log(1 + x); trends compare a window's count
with what the longer one promises; freshness is exp(-age / 7 days); prices are compared as logarithms with the mean of
the history."""


@dataclass(frozen=True)
class Item:
    """What the ranker knows of items; any leading shape: the catalogue (N,) or the candidates of slates (S, K)."""

    log_events: Floats
    """log(1 + count), `POPULARITY` along the last axis."""
    arrival_seconds: NDArray[np.float64]
    """NaN when unknown."""
    category: Ints
    """Rows of the three levels' vocabularies along the last axis, 0 for none."""
    log_price: Floats
    """NaN when there is none."""
    numbers: Floats
    """The declared columns' numbers along the last axis."""
    hashes: NDArray[np.int64]
    """Hashes of what crosses with users read of the item, along the last axis."""

    def take(self, rows: NDArray[np.int64] | slice) -> Item:
        """The items at some places of the first axis."""
        return Item(
            self.log_events[rows],
            self.arrival_seconds[rows],
            self.category[rows],
            self.log_price[rows],
            self.numbers[rows],
            self.hashes[rows],
        )

    def reshape(self, *shape: int) -> Item:
        """The same items in another leading shape."""
        return Item(
            self.log_events.reshape(*shape, len(POPULARITY)),
            self.arrival_seconds.reshape(shape),
            self.category.reshape(*shape, NUM_LEVELS),
            self.log_price.reshape(shape),
            self.numbers.reshape(*shape, self.numbers.shape[-1]),
            self.hashes.reshape(*shape, self.hashes.shape[-1]),
        )


@dataclass(frozen=True)
class History:
    """What the ranker compares candidates with: the user's latest items. `present` is false where there is none."""

    embeddings_SLD: Floats
    category_SL3: Ints
    log_price_SL: Floats
    present_SL: NDArray[np.bool_]

    @classmethod
    def of(cls, rows_SL: NDArray[np.int64], embeddings_ND: Floats, items: Item) -> History:
        """From catalogue rows, -1 where there is none."""
        present = rows_SL >= 0
        rows = np.where(present, rows_SL, 0)
        category = np.where(present[..., None], items.category[rows], 0)
        return cls(embeddings_ND[rows], category, items.log_price[rows], present)


def item_columns(items: Frame, vocabularies: Vocabularies) -> Item:
    """The ranker's columns of an item frame, in its order; nulls count as no event, unknown age, no price."""
    counts = np.stack([items[name].cast(pl.Float64).fill_null(0.0).to_numpy() for name in POPULARITY], 1)
    price = items["price"].cast(pl.Float64).to_numpy()
    with np.errstate(invalid="ignore"):
        log_price = np.where(price >= 0, np.log1p(np.maximum(price, 0.0)), np.nan)
    return Item(
        np.log1p(np.maximum(counts, 0.0)).astype(np.float32),
        items["arrival_seconds"].cast(pl.Float64).to_numpy(),
        encode_categories(items, vocabularies),
        log_price.astype(np.float32),
        vocabularies.columns.item_numbers(items),
        vocabularies.columns.item_hashes(items),
    )


def features_of(columns: ModelColumns) -> tuple[str, ...]:
    """The numbers that `assemble` gives first: FEATURES, then those of users' and of items' declared columns."""
    users = (f"user:{name}" for name in columns.user_number_names)
    return (*FEATURES, *users, *(f"item:{name}" for name in columns.item_number_names))


def assemble(
    users: UserInputs,
    history: History,
    candidates: Item,
    embeddings_SKD: Floats,
    logits_SK: Floats,
    now_S: NDArray[np.float64],
    columns: ModelColumns,
) -> Floats:
    """The features of every candidate, (S, K, F): the columns as `features_of` names them, then the bucket of each
    cross of pairs, a whole number (exact, since there are fewer than 2 ** 24).

    Args:
        users: one row a slate, its state at the slate's moment.
        history: the user's latest items.
        candidates: (S, K), item features at the slate's moment.
        embeddings_SKD: the retriever's item vectors.
        logits_SK: the retriever's inner products over its temperature.
        now_S: the slate's moment, unix seconds.
        columns: the declared columns; of the users' values the numbers stand first.
    """
    shape = logits_SK.shape
    num_user_numbers, num_items = len(columns.user_number_names), candidates.numbers.shape[-1]
    num_features = len(FEATURES) + num_user_numbers + num_items
    out = np.zeros((*shape, num_features + len(columns.pairs.crosses)), np.float32)
    out[..., 0] = logits_SK
    present_S1L = history.present_SL[:, None, :]
    count_S1 = np.maximum(history.present_SL.sum(1, keepdims=True), 1).astype(np.float32)
    similar_SKL = np.where(present_S1L, embeddings_SKD @ history.embeddings_SLD.transpose(0, 2, 1), np.float32(0))
    out[..., 1] = similar_SKL[..., -1]
    out[..., 2] = np.where(present_S1L, similar_SKL, np.float32(-1)).max(2)
    out[..., 3] = similar_SKL.sum(2) / count_S1
    events = candidates.log_events
    out[..., 4:9] = events
    last_1, last_7, last_30, users_30 = events[..., 0], events[..., 1], events[..., 2], events[..., 4]
    out[..., 9] = last_7 - np.log1p(np.expm1(last_30) * np.float32(7 / 30))
    out[..., 10] = last_1 - np.log1p(np.expm1(last_7) * np.float32(1 / 7))
    out[..., 11] = last_30 - users_30
    age = np.maximum(now_S[:, None] - candidates.arrival_seconds, 0.0) / DAY_SECONDS
    known = np.isfinite(age)
    out[..., 12] = np.log1p(np.where(known, age, 365.0))
    out[..., 13] = np.where(known, np.exp(-np.where(known, age, 0.0) / 7.0), 0.0)
    category = candidates.category
    same_SKC = (category[..., 0, None] == users.category_BC[:, None, :]) & (category[..., 0, None] > 0)
    out[..., 14] = (same_SKC * users.share_BC[:, None, :]).sum(2)
    for level in range(NUM_LEVELS):
        own = category[..., level, None]
        same_SKL = (own == history.category_SL3[:, None, :, level]) & (own > 0)
        out[..., 15 + level] = same_SKL.sum(2) / count_S1
    difference = candidates.log_price - _mean_price(history)[:, None]
    difference = np.where(np.isfinite(difference), difference, np.float32(0))
    out[..., 18] = difference
    out[..., 19] = np.abs(difference)
    first = len(FEATURES)
    out[..., 20:first] = users.numeric_BF[:, None, :]
    out[..., first : first + num_user_numbers] = users.value_BV[:, None, :num_user_numbers]
    out[..., first + num_user_numbers : num_features] = candidates.numbers
    if columns.pairs.crosses:
        out[..., num_features:] = columns.pairs.buckets(users.hash_BU, candidates.hashes)
    return out


def _mean_price(history: History) -> Floats:
    """The mean log price of each history, NaN where it has none."""
    known_SL = history.present_SL & np.isfinite(history.log_price_SL)
    count_S = known_SL.sum(1)
    total_S = np.where(known_SL, history.log_price_SL, np.float32(0)).sum(1)
    return np.where(count_S > 0, total_S / np.maximum(count_S, 1), np.nan).astype(np.float32)
