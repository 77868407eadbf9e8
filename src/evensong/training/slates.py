"""Owns the ranker's lesson: one wanted item among the candidates that the funnel would have offered at that moment.

Legend: S slates, K places of a slate (the positive first), N items of the catalogue, D embedding dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from evensong.errors import StorageError
from evensong.models import rank_features
from evensong.models.forward import TowersForward
from evensong.models.inputs import DAY_SECONDS, UserInputs, Vocabularies, encode_items
from evensong.models.rank_features import History, Item
from evensong.training.sampling import UserPositives
from evensong.types import TIMESTAMP, Frame

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Item features of (item_id, event_timestamp) rows at each row's moment: rows in = rows out, same order.
ItemJoin = Callable[[Frame], Frame]


@dataclass(frozen=True)
class Anchors:
    """Moments at which a user's wish is known: the state of the user, and the item wanted next."""

    users: UserInputs
    user_S: Ints
    item_S: Ints
    seconds_S: NDArray[np.float64]


@dataclass(frozen=True)
class Slates:
    """What the ranker learns from."""

    features_SKF: Floats
    log_inclusion_SK: Floats
    absent_SK: NDArray[np.bool_]
    group_S: Ints
    """The user, so that the validation can take whole users."""
    features: tuple[str, ...] = rank_features.FEATURES
    """Names of the first of the last axis of the features; the buckets of crosses follow."""
    crosses: tuple[str, ...] = ()
    num_buckets: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.group_S)


@dataclass(frozen=True)
class Catalogue:
    """The items as the retriever sees them, in one order of rows."""

    item_ids: list[str]
    embeddings_ND: Floats
    columns: Item
    row_of_token: Ints
    """Catalogue row of each row of the item vocabulary, -1 for none."""
    arrival_N: NDArray[np.float64]
    vocabularies: Vocabularies

    @classmethod
    def of(cls, items: Frame, towers: TowersForward, vocabularies: Vocabularies) -> Catalogue:
        """Encode an item frame."""
        inputs = encode_items(items, vocabularies)
        row_of_token = np.full(len(vocabularies.items), -1, np.int64)
        own = inputs.id_N > vocabularies.items.num_hashed
        row_of_token[inputs.id_N[own]] = np.flatnonzero(own)
        arrival = items["arrival_seconds"].cast(pl.Float64).fill_null(-np.inf).to_numpy()
        columns = rank_features.item_columns(items, vocabularies)
        return cls(items["item_id"].to_list(), towers.items(inputs), columns, row_of_token, arrival, vocabularies)


class DailyPopularity:
    """Catalogue rows, most popular first, as they stood at the midnight before a moment."""

    def __init__(self, positives: Frame, item_ids: list[str], days: float) -> None:
        row_of = {item_id: row for row, item_id in enumerate(item_ids)}
        rows = positives["item_id"].replace_strict(row_of, default=-1, return_dtype=pl.Int64).to_numpy()
        seconds = positives["event_timestamp"].dt.epoch("us").to_numpy() / 1e6
        order = np.argsort(seconds, kind="stable")
        order = order[rows[order] >= 0]
        self._rows, self._seconds = rows[order], seconds[order]
        self._size, self._window = len(item_ids), days * DAY_SECONDS
        self._known: dict[float, Ints] = {}

    def __call__(self, moment: float) -> Ints:
        """The order at a moment, unix seconds; ties by row."""
        midnight = moment // DAY_SECONDS * DAY_SECONDS
        if midnight not in self._known:
            first, last = np.searchsorted(self._seconds, [midnight - self._window, midnight])
            counts = np.bincount(self._rows[first:last], minlength=self._size)
            self._known[midnight] = np.argsort(-counts, kind="stable")
        return self._known[midnight]


def build(
    anchors: Anchors,
    catalogue: Catalogue,
    towers: TowersForward,
    positives: UserPositives,
    popular_order: Callable[[float], Ints],
    join: ItemJoin,
    *,
    num_candidates: int,
    num_popular: int,
    num_negatives: int,
    rng: np.random.Generator,
    chunk: int = 256,
) -> Slates:
    """Offer each anchor the funnel's candidates of its moment and draw negatives from them.

    A slate is kept when its positive is itself a candidate, because the ranker never meets another. Negatives are drawn
    evenly from the candidates; the probability of each draw goes along, so that the loss estimates the softmax over all
    candidates.

    Args:
        anchors: the labels.
        catalogue: the items, with the embeddings of a retriever that has not seen these labels.
        towers: that retriever.
        positives: what each user is known to have wanted, never a negative.
        popular_order: catalogue rows, most popular first, at a moment (unix seconds).
        join: item features at the slate's moment.
        num_candidates: what the retriever hands over.
        num_popular: popular items added.
        num_negatives: at most so many a slate.
        rng: where randomness comes from.
        chunk: slates scored at once.
    """
    drawn: list[tuple[int, Ints, float]] = []
    for start in range(0, len(anchors.item_S), chunk):
        rows = np.arange(start, min(start + chunk, len(anchors.item_S)))
        vectors = towers.users(anchors.users.take(rows))
        scores = vectors @ catalogue.embeddings_ND.T
        scores[catalogue.arrival_N[None, :] > anchors.seconds_S[rows][:, None]] = -np.inf
        hit_row, hit_item = positives.pairs(anchors.user_S[rows])
        own = scores[np.arange(len(rows)), anchors.item_S[rows]]
        scores[hit_row, hit_item] = -np.inf
        scores[np.arange(len(rows)), anchors.item_S[rows]] = own
        width = min(num_candidates, scores.shape[1])
        nearest = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        for local, row in enumerate(rows):
            order = popular_order(float(anchors.seconds_S[row]))
            offered = np.isfinite(scores[local])
            popular = order[offered[order]][:num_popular]
            candidates = np.union1d(nearest[local][offered[nearest[local]]], popular)
            positive = anchors.item_S[row]
            others = candidates[candidates != positive]
            if len(others) == 0 or len(others) == len(candidates):
                continue
            size = min(num_negatives, len(others))
            negatives = np.sort(rng.choice(others, size, replace=False))
            drawn.append((int(row), np.concatenate([[positive], negatives]), math.log(size / len(others))))
    return _features(drawn, anchors, catalogue, towers, join, 1 + num_negatives, chunk)


def _features(
    drawn: list[tuple[int, Ints, float]],
    anchors: Anchors,
    catalogue: Catalogue,
    towers: TowersForward,
    join: ItemJoin,
    width: int,
    chunk: int,
) -> Slates:
    item_SK = np.zeros((len(drawn), width), np.int64)
    absent_SK = np.ones((len(drawn), width), bool)
    log_inclusion_SK = np.zeros((len(drawn), width), np.float32)
    row_S = np.array([row for row, _, _ in drawn], np.int64)
    for slate, (_, items, log_inclusion) in enumerate(drawn):
        item_SK[slate, : len(items)] = items
        absent_SK[slate, : len(items)] = False
        log_inclusion_SK[slate, 1:] = log_inclusion
    own = catalogue.vocabularies.columns
    names = rank_features.features_of(own)
    features_SKF = np.zeros((len(drawn), width, len(names) + len(own.pairs.crosses)), np.float32)
    if len(drawn):
        columns = _at_each_moment(item_SK, absent_SK, anchors.seconds_S[row_S], catalogue, join)
    for start in range(0, len(drawn), chunk):
        part = slice(start, start + chunk)
        users = anchors.users.take(row_S[part])
        embeddings = catalogue.embeddings_ND[item_SK[part]]
        logits = np.einsum("skd,sd->sk", embeddings, towers.users(users)) / towers.temperature
        history = History.of(catalogue.row_of_token[users.history_BL], catalogue.embeddings_ND, catalogue.columns)
        features_SKF[part] = rank_features.assemble(
            users,
            history,
            columns.take(part),
            embeddings,
            logits.astype(np.float32),
            anchors.seconds_S[row_S[part]],
            own,
        )
    return Slates(
        *(features_SKF, log_inclusion_SK, absent_SK, anchors.user_S[row_S]),
        features=names,
        crosses=own.pairs.names,
        num_buckets=own.pairs.sizes,
    )


def _at_each_moment(
    item_SK: Ints, absent_SK: NDArray[np.bool_], seconds_S: NDArray[np.float64], catalogue: Catalogue, join: ItemJoin
) -> Item:
    """Item features (S, K) at the slate's moment, one microsecond before the label."""
    slate, place = np.nonzero(~absent_SK)
    moment = np.round(seconds_S * 1e6).astype(np.int64)[slate] - 1
    entities = pl.DataFrame(
        {
            "item_id": pl.Series(catalogue.item_ids, dtype=pl.String)[item_SK[slate, place]],
            "event_timestamp": pl.Series(moment).cast(TIMESTAMP),
        }
    )
    joined = join(entities)
    if len(joined) != len(entities):
        raise StorageError(f"the feature join took {len(entities)} rows and gave {len(joined)}; it must keep every row")
    place_SK = np.zeros(item_SK.shape, np.int64)
    place_SK[slate, place] = np.arange(len(joined))
    return rank_features.item_columns(joined, catalogue.vocabularies).take(place_SK)
